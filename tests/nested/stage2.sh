# In the host within: the modules a host of ramet has, then the command, on the second serial port.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
. /run/command # FOLDER, MODULES, OUTER_PATH, COMMAND
mount --bind "$MODULES" /lib/modules
hostname within
ip link set lo up
ulimit -n 65536
modprobe -a kvm-amd tun bridge veth nf_tables nft_chain_nat nft_masq nft_ct vhost_vsock erofs loop sch_htb ifb \
  cls_u32 act_mirred sch_ingress sch_tbf
cd "$FOLDER"
status=0
PATH=$OUTER_PATH bash -c "$COMMAND" >/dev/ttyS1 2>&1 </dev/null || status=$?
echo "exit status within: $status" >/dev/ttyS1
sync
echo o >/proc/sysrq-trigger
sleep 60
