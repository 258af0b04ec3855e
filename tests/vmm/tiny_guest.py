"""A kernel of a hundred bytes, for hosts whose KVM runs no stock one: without interrupts or page tables.

Its instructions mean the same in 32-bit mode, in which Firecracker 1.12 and newer enter it (PVH), and in
64-bit mode, as older ones do.

Each round it looks whether 64 pages hold the number of the last round, prints `!` for each that does not,
writes the next number into them, prints that as eight letters (a is 0, p is 15), and waits by reading a port.
At `last_round` it resets the machine.
"""

import struct
from typing import Final

LOAD_ADDRESS: Final = 0x100000
WRONG: Final = "!"
_CODE: Final = bytes.fromhex(
    "bf00002000"  # start: mov edi, 0x200000     here is the number
    "8b37"  # round: mov esi, [edi]
    "bb00003000"  # mov ebx, 0x300000            the first of the pages
    "b940000000"  # mov ecx, 64
    "3933"  # check: cmp [ebx], esi
    "7407"  # je same
    "66baf803"  # mov dx, 0x3f8                  the serial port
    "b021"  # mov al, '!'
    "ee"  # out dx, al
    "8d4601"  # same: lea eax, [esi + 1]
    "8903"  # mov [ebx], eax
    "81c300100000"  # add ebx, 4096
    "ffc9"  # dec ecx
    "75e6"  # jnz check
    "8907"  # mov [edi], eax
    "89c3"  # mov ebx, eax
    "b908000000"  # mov ecx, 8
    "66baf803"  # mov dx, 0x3f8
    "c1c304"  # digit: rol ebx, 4
    "89d8"  # mov eax, ebx
    "240f"  # and al, 15
    "0461"  # add al, 'a'
    "ee"  # out dx, al
    "ffc9"  # dec ecx
    "75f2"  # jnz digit
    "b00a"  # mov al, '\n'
    "ee"  # out dx, al
    "81fb"  # cmp ebx, last_round
)
_CODE_AFTER: Final = bytes.fromhex(
    "7310"  # jae reset
    "66bafd03"  # mov dx, 0x3fd                  the port's state, which takes a while to read
    "b9d0070000"  # mov ecx, 2000
    "ec"  # wait: in al, dx
    "ffc9"  # dec ecx
    "75fb"  # jnz wait
    "eba4"  # jmp round
    "b0fe"  # reset: mov al, 0xfe
    "e664"  # out 0x64, al                       the keyboard controller
    "f4"  # hang: hlt
    "ebfd"  # jmp hang
)
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")  # elf(5): Elf64_Ehdr
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_XEN_PHYS32_ENTRY: Final = 18
_NEVER: Final = 0xFFFFFFFF


def build(last_round: int = _NEVER) -> bytes:
    """Return the kernel as an ELF file that is entered at its first byte, by PVH where that is known."""
    code = _CODE + struct.pack("<I", last_round) + _CODE_AFTER
    note = struct.pack("<III4sQ", 4, 8, _XEN_PHYS32_ENTRY, b"Xen\0", LOAD_ADDRESS)
    code_at, note_at = 0x1000, _HEADER.size + 2 * _SEGMENT.size
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    sizes = (_HEADER.size, _SEGMENT.size, 2, 0, 0, 0)
    head = _HEADER.pack(ident, 2, 62, 1, LOAD_ADDRESS, _HEADER.size, 0, 0, *sizes)
    head += _SEGMENT.pack(_PT_LOAD, 5, code_at, LOAD_ADDRESS, LOAD_ADDRESS, len(code), len(code), 0x1000)
    head += _SEGMENT.pack(_PT_NOTE, 4, note_at, 0, 0, len(note), len(note), 4)
    return (head + note).ljust(code_at, b"\0") + code


def rounds(console: str) -> list[int]:
    """Return the numbers of the whole lines that were printed.

    Raises:
        AssertionError: some memory was not what it had been.
    """
    assert WRONG not in console, "memory has changed"
    lines = (line for line in console.splitlines(keepends=True) if line.endswith("\n"))
    words = (line.strip() for line in lines)
    return [
        int("".join(f"{ord(letter) - ord('a'):x}" for letter in word), 16)
        for word in words
        if len(word) == 8 and set(word) <= set("abcdefghijklmnop")
    ]
