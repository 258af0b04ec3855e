# An instance's life on the daemon's default hypervisor, in the host within: ends at the first thing that is wrong.
set -eu
PATH=$PWD/.venv/bin:$PATH
FOLDER=$(mktemp -d)
export PATH FOLDER RAMET_HOST="unix://$FOLDER/s"
ip link set lo up

serve() {
  ramet serve --data-dir "$FOLDER/data" --socket "$FOLDER/s" 2>>"$FOLDER/log" &
  daemon=$!
  until ramet ps >/dev/null 2>&1; do kill -0 $daemon; done
}
trap 'test $? = 0 || tail -n 40 "$FOLDER/log"' EXIT

serve
python examples/make_image.py "$FOLDER/box"
ramet image import "$FOLDER/box" --name box:1
ramet run --name web --memory 256MB --cpus 1 box:1 sh -c 'echo warm >/tmp/state; echo hello; sleep 100000'
test "$(stat -c %u "/proc/$(pgrep -o -f -- --api-sock)")" -gt 1900000000 # In its jail.
for sleep in first second; do # The second stores what has changed since the first.
  ramet exec web -- sh -c "cat /tmp/state; echo $sleep >>/tmp/state"
  ramet standby web
  ramet restore web
done
ramet exec web -- cat /tmp/state >"$FOLDER/state"
test "$(tr '\n' ' ' <"$FOLDER/state")" = 'warm first second '
ramet logs web | grep -x hello
kill $daemon
wait $daemon
serve # It takes hold of the guest that ran on.
ramet fork web copy
test "$(ramet exec copy -- hostname)" = copy
ramet exec copy -- sh -c 'echo kept >/tmp/kept'
ramet stop copy
ramet start copy
test "$(ramet exec copy -- cat /tmp/kept)" = kept
ramet rm --force web copy
! ip link show type tun | grep .
kill $daemon
wait $daemon
echo whole
