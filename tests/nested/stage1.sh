#!/bin/busybox sh
# The first program of the host within: the outer host's root, read-only, under a writable layer in memory.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module"; done
mount -t virtiofs -o ro outer /outer
mount -t tmpfs memory /memory
mkdir /memory/written /memory/work
mount -t overlay -o lowerdir=/outer,upperdir=/memory/written,workdir=/memory/work root /root
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm /root/lib/modules
mount -t devpts pts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs run /root/run
mount -t cgroup2 cgroups /root/sys/fs/cgroup
cp /stage2.sh /command /root/run/
exec switch_root /root /bin/bash /run/stage2.sh
