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
  sed -E -e 's/^Type=.*/Type=oneshot/' -e '/^(Restart|Watchdog|NotifyAccess|ExecReload)/d' -e "s#^ExecStart=.*#ExecStart=$program#" "$@" \
    /usr/lib/systemd/system/dsad.service >/etc/systemd/system/probe.service
  systemctl daemon-reload && systemctl reset-failed probe 2>/dev/null
  systemctl start probe.service
}
refused() { ! sandboxed "$@" && journalctl -u probe --no-pager -n 5 | grep -q 'Operation not permitted'; }

read_only() { ! sandboxed '/bin/bash -c "echo >/srv/file"' && journalctl -u probe --no-pager -n 5 | grep -q 'Read-only file system'; }

chmod 666 /dev/ttyS0
chmod 777 /srv
open='/bin/bash -c "exec 3<>/dev/ttyS0"' video='/bin/bash -c "exec 3<>/dev/video0"'
check "a camera may be opened" sandboxed "$video"
check "a device that is not listed may not, whatever its rights are" refused "$open"
check "it may where it is listed: the refusal is the sandbox's" sandboxed "$open" -e 's#^DeviceAllow=/dev/nvmap rw#DeviceAllow=/dev/ttyS0 rw#'
check "a camera may not where cameras are not listed" refused "$video" -e '/video4linux/d'
check "dsad takes a picture inside" sandboxed "/usr/bin/dsad cameras snap /dev/video0 --format YUYV --size 640 360 --out /var/lib/dsad/picture.png"
check "it is there" test -s /var/lib/dsad/picture.png
check "nothing can be written elsewhere" read_only
echo "$passed passed, 0 failed"
