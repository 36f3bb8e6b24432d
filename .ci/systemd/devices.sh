#!/bin/bash
# Runs as root in a virtual machine with the kernel's test camera, systemd as the first process and the package installed: which
# devices the unit's sandbox lets its user open.
passed=0
check() { # what, command...
  local what=$1; shift
  if "$@"; then echo "passed: $what"; passed=$((passed + 1)); else echo "FAILED: $what"; journalctl --no-pager -n 40; exit 1; fi
}
# The unit with another program in it, and changed keys: ends with the program's status.
sandboxed() { # program, changes as arguments of sed...
  local program=$1; shift
  sed -E -e 's/^Type=.*/Type=oneshot/' -e '/^(Restart|Watchdog|NotifyAccess|ExecReload|Timeout)/d' -e "s#^ExecStart=.*#ExecStart=$program#" "$@" \
    /usr/lib/systemd/system/dsad.service >/etc/systemd/system/probe.service
  systemctl daemon-reload && systemctl reset-failed probe 2>/dev/null
  systemctl start probe.service
}
refused() { ! sandboxed "$@" && journalctl -u probe --no-pager -n 5 | grep -q 'Operation not permitted'; }

read_only() { ! sandboxed '/bin/bash -c "echo >/srv/file"' && journalctl -u probe --no-pager -n 5 | grep -q 'Read-only file system'; }

# A device that is there and that nobody lists.
serial=/dev/ttyS0
[ "$(uname -m)" != aarch64 ] || serial=/dev/ttyAMA0
chmod 666 $serial
chmod 777 /srv
open='/bin/bash -c "exec 3<>'$serial'"' video='/bin/bash -c "exec 3<>/dev/video0"'
check "a camera may be opened" sandboxed "$video"
check "a device that is not listed may not, whatever its rights are" refused "$open"
check "it may where it is listed: the refusal is the sandbox's" sandboxed "$open" -e 's#^DeviceAllow=/dev/nvmap rw#DeviceAllow='$serial' rw#'
check "a camera may not where cameras are not listed" refused "$video" -e '/video4linux/d'
check "dsad takes a picture inside" sandboxed "/usr/bin/dsad cameras snap /dev/video0 --format YUYV --size 640 360 --out /var/lib/dsad/picture.png"
check "it is there" test -s /var/lib/dsad/picture.png
check "nothing can be written elsewhere" read_only
check "the demo judges inside" sandboxed "/usr/bin/dsad demo --parts 6 --out /var/lib/dsad/demo"
check "six events" test "$(wc -l </var/lib/dsad/demo/events.ndjson)" = 6

# The unit itself. An emulated processor takes a minute for a picture, and those that wait are judged before a stop.
mkdir -p /etc/systemd/system/dsad.service.d
printf '[Service]\nWatchdogSec=600s\nTimeoutStartSec=1800s\nTimeoutStopSec=1000s\n' >/etc/systemd/system/dsad.service.d/slow.conf
systemctl daemon-reload
sed -i 's#^source = .*#source = { kind = "v4l2", device = "/dev/video0", format = "YUYV", size = [640, 360], fps = 1.0 }#; 1i shutdown_timeout_ms = 900000' /etc/dsad/dsad.toml
judged() { local end=$((SECONDS + 900)); until grep -q '"verdict":"fail"' /var/lib/dsad/events.ndjson; do [ $SECONDS -lt $end ] || return 1; sleep 1; done; }
check "the station is ready with the test camera" systemctl start dsad
check "no part: the test picture is rejected" judged
check "it stops" systemctl stop dsad
check "ended well" test "$(systemctl show dsad --property=Result --value)" = success
echo "$passed passed, 0 failed"
