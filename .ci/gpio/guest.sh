# Runs in the virtual machine: one line of JSON a check, what failed on standard error. $1: edges, $2: replugs.
export RUST_LOG=off EDGES=$1 REPLUGS=$2
mount -t tracefs trace /sys/kernel/tracing; mount -t debugfs debug /sys/kernel/debug
# The kernel's own record of what was driven. Without the names of programs: those need hooks in the scheduler.
cd /sys/kernel/tracing
echo 0 > options/record-cmd; echo mono > trace_clock; echo 1 > events/gpio/gpio_value/enable
cd /host
failed=0
say() { echo "{\"check\":\"$1\",\"seconds\":$(cut -d' ' -f1 /proc/uptime),$2}"; }
bad() { echo "$1" >&2; failed=1; }
field() { echo "$1" | sed -n "s/.*\"$2\":\([0-9.]*\).*/\1/p"; }
say kernel "\"version\":\"$(uname -r)\",\"processors\":$(grep -c ^processor /proc/cpuinfo)"

# The checks that need a clock and threads of their own are tests of the project.
./tests gpio::sim gpio::daemon::sim --ignored --test-threads 1 --nocapture > tests.txt 2> tests.err
[ $? = 0 ] || bad "tests: $(cat tests.txt tests.err)"
grep -o '{"check".*' tests.txt
ran=$(sed -n 's/^test result: .* \([0-9]*\) passed.*/\1/p' tests.txt)
[ "$ran" = 7 ] || bad "tests: $ran passed, 7 are there"

# The verbs, as a line engineer uses them: two chips, one name on both.
plug() { # chip, line, name
  mkdir -p "/sys/kernel/config/gpio-sim/$1/b0/line$2"
  echo 8 > "/sys/kernel/config/gpio-sim/$1/b0/num_lines"
  echo "$3" > "/sys/kernel/config/gpio-sim/$1/b0/line$2/name"
}
live() { echo "$2" > "/sys/kernel/config/gpio-sim/$1/live"; }
at() { # chip, line
  echo "/sys/devices/platform/$(cat /sys/kernel/config/gpio-sim/$1/dev_name)/$(cat /sys/kernel/config/gpio-sim/$1/b0/chip_name)/sim_gpio$2"
}
plug one 4 TRIGGER; plug one 5 EJECT; plug one 6 TWICE; plug two 3 TWICE
live one 1; live two 1
list=$(./dsad gpio)
say list "\"lines\":$(echo "$list" | wc -l)"
echo "$list" | grep -q '4 TRIGGER' && echo "$list" | grep -q 'gpio-sim' || bad "list: $list"
./dsad gpio pulse TWICE 2> said.txt && bad "an ambiguous name was taken"
grep -q 'line 6 of /dev/gpiochip0, line 3 of /dev/gpiochip1' said.txt || bad "ambiguous: $(cat said.txt)"
./dsad gpio pulse NONE 2> said.txt && bad "a name that is not there was taken"
grep -q 'dsad gpio' said.txt || bad "missing: $(cat said.txt)"

./dsad gpio watch TRIGGER --seconds 20 --edges 10 --json > watch.json 2> watch.err & pid=$!
tries=0
while ! grep -q dsad /sys/kernel/debug/gpio && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
./dsad gpio pulse TRIGGER 2> said.txt && bad "a line was taken that somebody has"
grep -q "'dsad' has it" said.txt || bad "taken: $(cat said.txt)"
for edge in 1 2 3 4 5 6 7 8 9 10; do
  echo pull-up > $(at one 4)/pull; echo pull-down > $(at one 4)/pull
done
wait $pid; row=$(cat watch.json)
say watch "\"result\":$row"
[ "$(field "$row" edges)" = 10 ] && [ "$(field "$row" missed)" = 0 ] || bad "watch: $row $(cat watch.err)"

# Its value is read from outside, again and again.
seen() { # value, chip, line
  tries=0
  while [ $tries -lt 100 ]; do
    [ "$(cat $(at $2 $3)/value)" = $1 ] && return 0
    tries=$((tries + 1)); sleep 0.1
  done
  return 1
}
./dsad gpio pulse 5 --chip /dev/gpiochip0 --ms 2000 > said.txt & pid=$!
seen 1 one 5; rose=$?; wait $pid; after=$(cat $(at one 5)/value)
say pulse "\"rose\":$((1 - rose)),\"after\":$after"
[ "$rose$after" = 00 ] || bad "pulse: $rose, then $after: $(cat said.txt)"
# Between its pulses a line that is active low is high.
./dsad gpio pulse EJECT --active-low --ms 1 --times 2 --gap-ms 3000 > said.txt & pid=$!
seen 1 one 5 && sleep 1 && between=$(cat $(at one 5)/value); wait $pid
say "pulse, active low" "\"between\":$between"
[ "$between" = 1 ] || bad "pulse, active low: $between: $(cat said.txt)"
exit $failed
