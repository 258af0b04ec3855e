"""What the unit takes away, a real guest does not miss.

systemd itself does not run here; the same is taken with the tools it is made of: the capabilities by
`setpriv`, the file system by a mount namespace. The system call filter and the device list are not covered.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ramet.setup.unit import CAPABILITIES

pytestmark = pytest.mark.vm

PROJECT = Path(__file__).parents[2]
# Everything read-only but /dev, /proc, /sys and the folder, as ProtectSystem=strict has it; then two lives
# of the daemon, with a guest that is to survive the first: what KillMode=process leaves behind.
SESSION = """
set -e
mount --make-rprivate /
mount --bind "$FOLDER" "$FOLDER"
mount -o remount,bind,ro /
! touch /usr/x 2>/dev/null
ip link set lo up
serve() {
  setpriv --no-new-privs --bounding-set="-all$CAPS" --inh-caps=-all \
    ramet serve --data-dir "$FOLDER/data" --socket "$FOLDER/s" 2>>"$FOLDER/log" &
  daemon=$!
  for _ in $(seq 600); do ramet ps >/dev/null 2>&1 && return; kill -0 $daemon; sleep 0.1; done
}
trap 'ramet rm --force $(ramet ps -a -q) >/dev/null 2>&1 || true; kill $daemon; wait $daemon || true' EXIT
serve
grep CapBnd /proc/$daemon/status
python "$PROJECT/examples/make_image.py" "$FOLDER/box"
ramet image import "$FOLDER/box" --name box:1
ramet run --name web --memory 256MB --cpus 1 box:1 sh -c 'echo warm > /tmp/state; sleep 100000'
kill $daemon; wait $daemon
serve
ramet fork web copy
ramet exec copy -- sh -c 'cat /tmp/state; hostname'
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_guests_run_fork_and_outlive_the_daemon_with_what_the_unit_leaves(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("h")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FOLDER": str(folder),
        "PROJECT": str(PROJECT),
        "RAMET_HOST": f"unix://{folder}/s",
        "RAMET_SOCKET": f"{folder}/s",
        "CAPS": "".join(f",+{name.removeprefix('CAP_').lower()}" for name in CAPABILITIES),
    }
    command = ["unshare", "--net", "--mount", "bash", "-c", SESSION]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    log = (folder / "log").read_text() if (folder / "log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log[-4000:]
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["warm", "copy"]
    # The cut was made: CAP_SYS_MODULE (16) is not in the set, CAP_NET_ADMIN (12) is.
    bounding = int(next(line for line in lines if line.startswith("CapBnd")).split()[1], 16)
    assert bounding & (1 << 16 | 1 << 12) == 1 << 12
