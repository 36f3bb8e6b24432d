# Runs in the virtual machine: one line of JSON a check, what failed on standard error. $1: pictures per format, $2: replugs, $3: errors at random.
export RUST_LOG=error,dsad::daemon=info
cd /host
V=/dev/video0
UNPLUG=/sys/bus/platform/drivers/vivid
failed=0
say() { echo "{\"check\":\"$1\",\"seconds\":$(cut -d' ' -f1 /proc/uptime),$2}"; }
bad() { echo "$1" >&2; failed=1; }
field() { echo "$1" | sed -n "s/.*\"$2\":\([0-9.]*\).*/\1/p"; }
# No function: what is sent to the background must be dsad itself, for the signal.
watch="./dsad cameras watch $V --size 640 360 --fps 30 --json"
kept() { # descriptors and mappings of the device that a process has
  echo $(ls -l /proc/$1/fd 2>/dev/null | grep -c video) $(grep -c video /proc/$1/maps)
}

for format in GREY Y10 Y12 Y16 YUYV UYVY NV12 RGB3 BGR3 RGGB GRBG GBRG BA81 RG16 GR16 GB16 BYR2; do
  row=$($watch --format $format --frames $1 --seconds 60)
  say "$format" "\"result\":$row"
  [ "$(field "$row" frames)" = $1 ] && [ "$(field "$row" damaged)" = 0 ] && [ "$(field "$row" lost)" = 0 ] || bad "$format: $row"
done
./dsad cameras snap $V --format MJPG --out none.png 2> mjpg.txt && bad "MJPG: vivid has none, and a picture came"
grep -q "the camera gives" mjpg.txt || bad "MJPG: $(cat mjpg.txt)"

# A control of 64 bits, and the names of a menu.
./dsad cameras set $V integer_64_bits=5000000000 || bad "a control of 64 bits cannot be set"
./dsad cameras > cameras.txt
grep -q "integer_64_bits = 5000000000" cameras.txt || bad "a control of 64 bits was not kept: $(cat cameras.txt)"
grep -A1 "^  test_pattern" cameras.txt | grep -q "0 75% Colorbar" || bad "menus have no names: $(cat cameras.txt)"

# Our own pictures, pixel by pixel, through v4l2loopback.
insmod v4l2loopback.ko devices=1 video_nr=10 exclusive_caps=1
DSAD_LOOPBACK=/dev/video10 DSAD_LOOPBACK_PICTURES=$1 ./loopback --ignored --nocapture > loopback.txt 2>&1 || bad "loopback: $(cat loopback.txt)"
grep -o '{"check".*}' loopback.txt
[ "$(grep -c '{"check"' loopback.txt)" = 3 ] || bad "loopback: a format is missing"

# The same camera by nokhwa, which does not know the format that it stands at. It hangs when no picture comes: the camera is
# lost, and back when the thread that was left alone has woken up and let go of it.
web="./dsad cameras watch web --config web.toml --json"
row=$($web --frames 60 --seconds 60)
say "nokhwa" "\"result\":$row"
[ "$(field "$row" frames)" = 60 ] && [ "$(field "$row" damaged)" = 0 ] && [ "$(field "$row" lost)" = 0 ] || bad "nokhwa: $row"
RUST_LOG=warn $web --seconds 20 > row.json 2> row.err &
sleep 5; ./dsad cameras set $V percentage_of_dropped_buffers=100
sleep 5; ./dsad cameras set $V percentage_of_dropped_buffers=0
wait $!; row=$(cat row.json)
say "nokhwa hangs" "\"result\":$row"
[ "$(field "$row" lost)" = 1 ] && [ "$(field "$row" recovered)" = 1 ] && grep -q "its thread hangs" row.err ||
  bad "nokhwa hangs: $row $(cat row.err)"
$web --seconds 12 > row.json 2> row.err &
sleep 4; echo vivid.0 > $UNPLUG/unbind; sleep 1; echo vivid.0 > $UNPLUG/bind
wait $!; row=$(cat row.json)
say "nokhwa replugged" "\"result\":$row"
[ "$(field "$row" lost)" = 1 ] && [ "$(field "$row" recovered)" = 1 ] || bad "nokhwa replugged: $row $(cat row.err)"

# A damaged picture, a driver that drops half, one that refuses a buffer, one that breaks: each while pictures are taken.
inject() { # name, control, what the row must say
  $watch --format YUYV --seconds 8 > row.json 2> row.err &
  sleep 3; ./dsad cameras set $V $2 || bad "$1: cannot be injected"
  wait $!; row=$(cat row.json)
  say "$1" "\"result\":$row"
  [ "$(field "$row" $3)" -ge 1 ] 2>/dev/null || bad "$1: $3 is not counted: $row"
}
inject "broken stream" inject_fatal_streaming_error=0 recovered
inject "damaged buffer" inject_v4l2_buf_flag_error=0 damaged
inject "dropped buffers" percentage_of_dropped_buffers=50 dropped
./dsad cameras set $V percentage_of_dropped_buffers=0
inject "refused buffer" inject_vidioc_qbuf_error=0 recovered
# These strike when a stream begins.
start() { # name, control, what the row must say
  ./dsad cameras set $V $2 || bad "$1: cannot be injected"
  row=$($watch --format YUYV --frames 150 --seconds 20 2> row.err)
  say "$1" "\"result\":$row"
  [ "$(field "$row" $3)" -ge $4 ] && [ "$(field "$row" frames)" = 150 ] || bad "$1: $row"
}
start "refused buffers at the start" inject_vidioc_reqbufs_error=0 recovered 1
start "refused start" inject_vidioc_streamon_error=0 recovered 1
start "counter that wraps" wrap_sequence_number=1 frames 150
[ "$(field "$row" dropped)" -lt 10000 ] || bad "counter that wraps: $row"
./dsad cameras set $V wrap_sequence_number=0

# Errors at random, one on another, with one process all the time; then the next good picture and no other.
$watch --format YUYV --seconds 100000 > errors.json 2> errors.err & pid=$!
while [ "$(kept $pid)" = "0 0" ] && kill -0 $pid; do sleep 0.1; done
sleep 2; before=$(kept $pid); count=0; RANDOM=4
while [ $count -lt $3 ]; do
  count=$((count + 1))
  case $((RANDOM % 4)) in
    0) error=inject_fatal_streaming_error=0 ;;
    1) error=inject_v4l2_buf_flag_error=0 ;;
    2) error=inject_vidioc_qbuf_error=0 ;;
    3) error=percentage_of_dropped_buffers=$((RANDOM % 91)) ;;
  esac
  ./dsad cameras set $V $error >/dev/null || bad "errors: $error cannot be injected"
done
./dsad cameras set $V percentage_of_dropped_buffers=0
sleep 3; after=$(kept $pid); kill -TERM $pid; wait $pid; status=$?; row=$(cat errors.json)
say errors "\"times\":$3,\"descriptors_and_mappings\":[\"$before\",\"$after\"],\"result\":$row"
[ $status = 0 ] && [ "$before" = "$after" ] || bad "errors: status $status, descriptors and mappings were $before and are $after"
[ "$(field "$row" recovered)" = "$(field "$row" lost)" ] && [ "$(field "$row" damaged)" -ge 1 ] || bad "errors: $row"
[ "$(field "$row" longest_recovery_s | cut -d. -f1)" -lt 2 ] || bad "errors: came back too late: $row"
row=$($watch --format YUYV --frames 150 --seconds 20)
[ "$(field "$row" frames)" = 150 ] && [ "$(field "$row" damaged)" = 0 ] && [ "$(field "$row" lost)" = 0 ] || bad "after the errors: $row"

# Unplugged and plugged in again, with one process all the time.
$watch --format YUYV --seconds 100000 > replug.json 2> replug.err & pid=$!
sleep 2; before=$(kept $pid); count=0
while [ $count -lt $2 ]; do
  count=$((count + 1))
  echo vivid.0 > $UNPLUG/unbind; sleep 0.3; echo vivid.0 > $UNPLUG/bind; sleep 1.2
done
sleep 1; after=$(kept $pid); kill -TERM $pid; wait $pid; row=$(cat replug.json)
say replug "\"times\":$2,\"descriptors_and_mappings\":[\"$before\",\"$after\"],\"result\":$row"
[ "$before" = "$after" ] || bad "replug: descriptors and mappings were $before and are $after"
[ "$(field "$row" recovered)" = $2 ] || bad "replug: $2 times: $row"
[ "$(field "$row" longest_recovery_s | cut -d. -f1)" -lt 2 ] || bad "replug: came back too late: $row"

# The whole daemon: every picture that the camera gave is one event, over a damaged picture, another product with its own
# brightness, an unplugged cable and a stop. The emulated processor judges one in seconds, so most are overruns. The host's folder
# cannot be mapped, as the database needs.
mkdir /tmp/line && cp -r *.toml bundle dsad /tmp/line/ && cd /tmp/line
ifconfig lo 127.0.0.1 up
brightness() { ./dsad cameras | sed -n 's/^ *brightness = \([0-9]*\).*/\1/p'; }
./dsad run --config station.toml --json > daemon.json 2> daemon.err & pid=$!
while ! grep -q '"score":[0-9]' events.ndjson 2>/dev/null && kill -0 $pid 2>/dev/null; do sleep 1; done
./dsad cameras set $V inject_v4l2_buf_flag_error=0; sleep 3
dark=$(brightness)
answer=$(printf 'PrepareRecipe recipe=bright;' | nc -w 3 127.0.0.1 7000); sleep 2
bright=$(brightness)
echo vivid.0 > $UNPLUG/unbind; sleep 1; echo vivid.0 > $UNPLUG/bind; sleep 5
again=$(brightness)
kill -TERM $pid; wait $pid; status=$?; row=$(cat daemon.json)
[ "$answer" = "ok cameras=top" ] && [ "$dark $bright $again" = "60 200 200" ] ||
  bad "recipes: '$answer', brightness $dark, $bright, $again"
grep -q '"recipe_id":"dark"' events.ndjson && grep -q '"recipe_id":"bright"' events.ndjson || bad "recipes: an event is missing"
say recipes "\"brightness\":[$dark,$bright,$again]"
say daemon "\"status\":$status,\"events\":$(wc -l < events.ndjson),\"result\":$row"
[ $status = 0 ] && [ "$(field "$row" frames_in)" = "$(wc -l < events.ndjson)" ] || bad "daemon: $row $(cat daemon.err)"
grep -q "camera top is back" daemon.err || bad "daemon: the camera did not come back: $(cat daemon.err)"
exit $failed
