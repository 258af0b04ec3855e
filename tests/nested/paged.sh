# A guest that wakes from packed memory, served by the pager, in the host within: ends at the first thing that is wrong.
set -eu
PATH=$PWD/.venv/bin:$PATH
FOLDER=$(mktemp -d)
export PATH FOLDER RAMET_HOST="unix://$FOLDER/s"
export RAMET_HYPERVISOR__FIRECRACKER_SNAPSHOT_MEMORY_BACKEND=uffd
ip link set lo up
trap 'test $? = 0 || tail -n 40 "$FOLDER/log"' EXIT

served() { # How many guests the pager serves, and has served at least one page.
  python - "$FOLDER"/data/pagers/*/control.sock <<'END'
import asyncio, sys
from pathlib import Path
from ramet.pager import PagerClient
sessions = asyncio.run(PagerClient(Path(sys.argv[1])).statistics()).sessions
print(sum(session.copied_bytes > 0 for session in sessions))
END
}

ramet serve --data-dir "$FOLDER/data" --socket "$FOLDER/s" 2>>"$FOLDER/log" &
daemon=$!
until ramet ps >/dev/null 2>&1; do kill -0 $daemon; done
python examples/make_image.py "$FOLDER/box"
ramet image import "$FOLDER/box" --name box:1
ramet run --name web --memory 256MB --cpus 1 box:1 sh -c 'echo warm >/tmp/state; sleep 100000'
for sleep in first second; do
  ramet standby --compression zstd web
  until ls "$FOLDER"/data/captures/*/memory.packed && ! ls "$FOLDER"/data/captures/*/ramet-memory; do
    kill -0 $daemon
  done >/dev/null 2>&1
  ramet restore web
  test "$(served)" = 1
  ramet exec web -- sh -c "echo $sleep >>/tmp/state"
done
ramet exec web -- cat /tmp/state >"$FOLDER/state"
test "$(tr '\n' ' ' <"$FOLDER/state")" = 'warm first second '
ramet fork web copy # Whose memory is in the page cache, and so is mapped.
test "$(ramet exec copy -- hostname)" = copy
test "$(served)" = 1
kill -9 "$(cat /proc/[0-9]*/stat 2>/dev/null | awk '$2 == "(ramet-pager)" {print $1}')"
until ramet ps --all | grep web | grep -i stopped; do kill -0 $daemon; done
test "$(ramet exec copy -- hostname)" = copy
ramet start web
test "$(ramet exec web -- cat /tmp/state)" = warm
ramet rm --force web copy
kill $daemon
wait $daemon
echo whole
