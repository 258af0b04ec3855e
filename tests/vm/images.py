"""The image the guests of these tests run: busybox, and a workload that tells about itself."""

import shutil
import subprocess
from pathlib import Path

from examples.make_image import busybox_files, make_oci_layout

IMAGE = "demo:1"
HTTP_PORT = 8080
ECHO_PORT = 9000

# Reads random bytes again and again, while /dev/shm/draw is there, without ever starting a process: what it
# reads first after a thaw is the first thing that any process of the guest's workload does. `count` is a
# variable of this process alone.
WORKLOAD = b"""#!/bin/sh
echo hello
httpd -p 8080 -h /www
nc -ll -p 9000 -e cat &
mkfifo /dev/shm/tick
exec 3<>/dev/shm/tick
count=0
while :; do
    if [ -e /dev/shm/draw ]; then
        read -t 0.05 -r nothing <&3
    else
        read -r nothing <&3
    fi
    read -r before </proc/sys/kernel/hostname
    read -r drawn </proc/sys/kernel/random/uuid
    read -r after </proc/sys/kernel/hostname
    count=$((count + 1))
    echo "$count $before $drawn $after" >>/dev/shm/drawn
done
"""

STATE_PAGE = b"""#!/bin/sh
echo "Content-Type: text/plain"
echo
echo "hostname $(cat /proc/sys/kernel/hostname)"
echo "machine_id $(cat /etc/machine-id)"
echo "mac $(cat /sys/class/net/eth0/address)"
echo "memory $(cat /dev/shm/state)"
echo "disk $(cat /var/state)"
"""


def write_image(
    folder: Path, config: dict[str, object] | None = None, extra: dict[str, tuple[int, bytes]] | None = None
) -> None:
    """Write the image to `folder` as an OCI layout; `config` overrides parts of its config."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "apt-get install busybox-static"
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    files, _ = busybox_files(Path(busybox))
    files |= {
        "bin/workload": (0o755, WORKLOAD),
        "www/cgi-bin/state": (0o755, STATE_PAGE),
        "www/alive": (0o644, b"yes"),
        "etc/machine-id": (0o444, b"0" * 32 + b"\n"),
        "etc/passwd": (
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nguest:x:1234:2345:guest:/home/guest:/bin/sh\n",
        ),
        "etc/group": (0o644, b"root:x:0:\nguest:x:2345:\n"),
        "var/.keep": (0o644, b""),
        "home/guest/.keep": (0o644, b""),
        **(extra or {}),
    }
    links = {f"bin/{applet}": "busybox" for applet in listed.stdout.split() if applet != "busybox"}
    make_oci_layout(
        folder, IMAGE, files, links, {"Cmd": ["/bin/workload"], "Env": ["PATH=/bin"], **(config or {})}
    )
