// Package ruleset keeps the kernel in step with the tables of Services
// ([plan.Port]): an nftables table whose chains are written once and whose
// maps say where a connection goes. A change of a Service adds and removes
// elements, in one transaction with all others of the same moment.
//
// # What it owns
//
// The table "inet" Config.Table and nothing else in the kernel, but that it
// forgets tracked UDP flows from the addresses of Services to backends that
// they no longer have.
//
// For N = 4 and 6:
//
//	vipsN       address . protocol . port               -> goto ipN-<count>
//	backendsN   address . protocol . port . index       -> backend . port
//	droppedN    address . protocol . port
//	addressesN  address
//	stickyN     client . address . protocol . port      -> backend . port
//	liveN       address . protocol . port . backend . port
//	hairpinN    backend . backend
//
// A chain ipN-3 takes one of three backends at random, ipN-3-10800 the one the
// client had in the last three hours if the Service still has it (liveN), and
// remembers it. So there are as many chains as there are different numbers of
// backends, however many Services there are. What is addressed to a Service
// and went nowhere is refused, and addresses no Service has are dropped.
//
// # Promises
//
// Each transaction is whole: a packet sees the Services as they were or as
// they are. Connections that exist are not touched by any of this, nor by the
// end of the process, however it ends: [Open] finds the table again and the
// first [Table.Replace] changes what is different. A table that is another
// version's, or was changed by somebody else, is replaced whole. Methods may
// be called concurrently; they take turns.
//
// # Who reaches Services
//
// This machine, and what arrives from Config.From when that is named. Packets
// keep their source, but for a pod that reaches itself.
//
// Floor: 6, over the plan. It knows no API.
package ruleset
