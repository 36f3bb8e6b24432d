#!/bin/bash
# Runs as root where systemd is the first process and the package is installed; /host is the machine's folder. Says what failed.
passed=0
check() { # what, command...
  local what=$1; shift
  if "$@"; then echo "passed: $what"; passed=$((passed + 1)); else echo "FAILED: $what"; systemctl status dsad --no-pager; journalctl -u dsad --no-pager -n 30; exit 1; fi
}
show() { systemctl show dsad --property="$1" --value; }
# Waits until a command succeeds, a minute at most.
until_() { local end=$((SECONDS + 60)); until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done; }
says() { [[ $(show StatusText) == *"$1"* ]]; }
differs() { [ "$(show MainPID)" != "$1" ] && [ "$(show MainPID)" != 0 ] && [ "$(show SubState)" = running ]; }
# What the page says: status and body.
page() { exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n' "$1" >&3 && cat <&3; exec 3>&-; }
page_has() { page "$1" 2>/dev/null | grep -q "$2"; }

config=/etc/dsad/dsad.toml
touch /run/marker
check "start returns when the station is ready" systemctl start dsad
check "it judges" says "judging 1 camera(s) on cpu"
check "readyz is 200" until_ page_has /readyz "200 OK"
pid=$(show MainPID)
check "as its own user" test "$(stat -c %U /proc/"$pid")" = inspect
check "without a capability" grep -qE '^CapEff:\s0+$' "/proc/$pid/status"
check "no new privileges, system calls filtered" grep -qzE 'NoNewPrivs:\s1.*Seccomp:\s2' "/proc/$pid/status"
check "events are written" until_ test -s /var/lib/dsad/events.ndjson
check "exposure at most 2.0" systemd-analyze security --threshold=20 dsad.service --no-pager

kill -STOP "$pid"
check "a process that stands still is ended by the watchdog and started anew" until_ differs "$pid"
check "it judges again" until_ says "judging 1 camera(s) on cpu"
check "by the watchdog" bash -c 'journalctl -u dsad | grep -q "Watchdog timeout"'

pid=$(show MainPID)
kill -KILL "$pid"
check "a killed process is started anew" until_ differs "$pid"
check "it judges once more" until_ says "judging 1 camera(s) on cpu"

cp $config /run/good.toml
sed -i 's/^station = .*/station = ""/; s/^line = /lien = /' $config
check "a restart with a refused configuration does not fail" systemctl restart dsad
check "safe mode is said" says "safe mode, outputs off: /etc/dsad/dsad.toml"
check "the page says why" page_has /readyz "did you mean 'line'"
check "readyz is 503" page_has /readyz "503"
check "livez is 200" page_has /livez "200 OK"
pid=$(show MainPID) restarts=$(show NRestarts)
sleep 12
check "it stays up, beyond the watchdog's time" test "$(show MainPID) $(show NRestarts)" = "$pid $restarts"
cp /run/good.toml $config
check "a reload of the mended file" systemctl reload dsad
check "makes it judge" until_ says "judging 1 camera(s) on cpu"

check "stop" systemctl stop dsad
check "ended well" test "$(show Result)" = success
outside=$(find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /dev -o -path /tmp -o -path /var/tmp -o -path /var/log/journal \
  -o -path /var/lib/systemd -o -path /host \) -prune -o -type f -newer /run/marker -print |
  grep -vE '^/(var/(lib|cache|log)/dsad/|etc/dsad/dsad.toml$|etc/resolv.conf$|var/log/(wtmp|lastlog|btmp))')
check "nothing is written outside its folders: $outside" test -z "$outside"
echo "$passed passed, 0 failed"
