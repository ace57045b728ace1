// Package network gives pods their network: a bridge of the node with a
// gateway address, a veth pair per pod whose inner end is eth0, an address of
// each family, routes, masquerading to the outside and host ports. Where a
// cluster asks for it, a CNI configuration does the same work (OpenCNI); both
// are a Plugin.
//
// # What it owns
//
// The bridge (Config.Bridge) and every link named "unip"+11 hexadecimal digits
// enslaved to it, the nftables table "inet" Config.Table, and the files below
// Config.StateDir and Config.RunDir. It never touches another table, chain or
// link. Of the host's settings it changes net.ipv4.ip_forward,
// net.ipv6.conf.all.forwarding (each to 1, and never back: others may have
// come to rely on it) and, because an IPv6 router stops listening to router
// advertisements, accept_ra from 1 to 2 on the interfaces that used them, so
// that the host keeps its own routes.
//
// # Leases
//
// A pod's record (addresses, link, host ports) lives as long as its network
// namespace can: until a reboot. So records are files in RunDir, whole or not
// there, but not synced: on a disk that would cost every pod start more than a
// millisecond and buy nothing, for after a reboot no pod is left that could
// hold the address. RunDir has to be empty after one, as a tmpfs is; who puts
// it elsewhere empties it. What must outlive a reboot is only that an address
// given out shortly before is not given to another pod at once, for peers may
// still know it: StateDir holds a cursor, synced lazily and far enough ahead.
//
// # Promises
//
// Setup either returns a working attachment or leaves nothing behind. A record
// is there before the first thing it describes and goes after the last.
// Teardown returns when the pod's host ports are free; link and namespace,
// whose removal costs the kernel tens of milliseconds of RCU grace periods
// under the lock every other network change needs, go within seconds, many at a
// time and when no pod is being set up if there is such a moment; only then are
// the addresses free again. Reconcile makes the kernel and the
// records agree after a crash at any instant. All methods of Network may be
// called concurrently, Close last; calls for one pod take turns.
//
// # Host ports
//
// A host port is an element of a map of the table, which the kernel looks up
// for packets to an address of this host; no rule is ever added or removed for
// a pod. A socket of the node is bound to the port as well: a process of the
// host that wants it fails with "address in use", and a pod that wants a
// process's port fails in Setup. Connections to ::1, which the kernel can't
// redirect, arrive at that socket and are forwarded to the pod by the node;
// so would be all others, should somebody flush the table, until the next
// Setup makes it anew. Pods see the client's address, but for clients on
// loopback and in pods, whom they see as the gateway.
//
// # Isolation
//
// Pods reach each other, as Kubernetes wants it. They do not reach the host's
// loopback addresses (CVE-2020-8558), nor do they or the bridge listen to
// router advertisements (CVE-2020-10749). A pod with CAP_NET_RAW can forge
// addresses on the bridge, as on a real network.
//
// # Beside others
//
// Accepting a packet in our table does not stop another table from dropping
// it, so there is no "accept" chain here: a host firewall whose forward policy
// is drop must let Config.Bridge pass (firewalld: put the bridge into the zone
// "trusted"; docker: a rule in DOCKER-USER).
//
// Floor: 1. It imports nothing of unipod.
package network
