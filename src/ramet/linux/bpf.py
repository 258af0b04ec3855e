"""Classic BPF: the small programs by which the kernel tells which frames a socket, or a TAP, is to have.

A program runs over one frame, from its Ethernet header on, and returns how many of its bytes are kept; 0
drops it. Numbers in a frame are read in network order.
"""

import ctypes
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

INSTRUCTION_COUNT_MAX: Final = 4096  # linux/bpf_common.h: BPF_MAXINSNS

# linux/bpf_common.h, in the combinations used here.
BPF_LD_B_ABS: Final = 0x30
BPF_LD_H_ABS: Final = 0x28
BPF_LD_W_ABS: Final = 0x20
BPF_LD_B_IND: Final = 0x50
BPF_LD_H_IND: Final = 0x48
BPF_LDX_B_MSH: Final = 0xB1
BPF_AND_K: Final = 0x54
BPF_JEQ_K: Final = 0x15
BPF_JSET_K: Final = 0x45
BPF_RET_K: Final = 0x06

# linux/filter.h
SOCK_FPROG: Final = struct.Struct("@HP")
_SOCK_FILTER: Final = struct.Struct("=HBBI")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One `struct sock_filter`: `if_true` and `if_false` are how many instructions a jump passes over."""

    code: int
    k: int
    if_true: int = 0
    if_false: int = 0


KEEP: Final = Instruction(BPF_RET_K, 0xFFFFFFFF)
DROP: Final = Instruction(BPF_RET_K, 0)


def load_byte(at: int) -> Instruction:
    """Read the byte at `at`."""
    return Instruction(BPF_LD_B_ABS, at)


def load_half(at: int) -> Instruction:
    """Read the 16 bits at `at`."""
    return Instruction(BPF_LD_H_ABS, at)


def load_word(at: int) -> Instruction:
    """Read the 32 bits at `at`."""
    return Instruction(BPF_LD_W_ABS, at)


def load_header_length(at: int) -> Instruction:
    """Have the length of the IPv4 header at `at` be what the next indexed reads begin behind."""
    return Instruction(BPF_LDX_B_MSH, at)


def load_byte_behind(at: int) -> Instruction:
    """Read the byte at `at`, counted on from the header's length."""
    return Instruction(BPF_LD_B_IND, at)


def load_half_behind(at: int) -> Instruction:
    """Read the 16 bits at `at`, counted on from the header's length."""
    return Instruction(BPF_LD_H_IND, at)


def keep_bits(mask: int) -> Instruction:
    """Have the other bits of what was read be 0."""
    return Instruction(BPF_AND_K, mask)


def drop_unless(value: int) -> tuple[Instruction, ...]:
    """Drop the frame unless what was read is `value`."""
    return Instruction(BPF_JEQ_K, value, if_true=1), DROP


def drop_if(value: int) -> tuple[Instruction, ...]:
    """Drop the frame if what was read is `value`."""
    return Instruction(BPF_JEQ_K, value, if_false=1), DROP


def drop_if_any(mask: int) -> tuple[Instruction, ...]:
    """Drop the frame if a bit of `mask` is set in what was read."""
    return Instruction(BPF_JSET_K, mask, if_false=1), DROP


@contextmanager
def sock_fprog(program: Sequence[Instruction]) -> Iterator[bytes]:
    """Hold `program` where the kernel can read it, inside; yields the `struct sock_fprog` that says where."""
    assert 0 < len(program) <= INSTRUCTION_COUNT_MAX, "the kernel takes no such program"
    code = b"".join(_SOCK_FILTER.pack(one.code, one.if_true, one.if_false, one.k) for one in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    yield SOCK_FPROG.pack(len(program), ctypes.addressof(buffer))
