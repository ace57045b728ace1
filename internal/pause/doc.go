// Package pause starts the pause process of a pod and speaks with it. It owns
// the embedded program (its C source, protocol and invariants are in the
// repository's pause directory), the socket pause.sock in the pod's run
// directory, and one connection per pod.
//
// Pause is the parent of every process of its pod. Spawn lets it clone a child
// that carries out a recipe; Exits tells how children ended; Children lists
// what pause holds, which is how a restarted node finds its way back. pause
// keeps an exit, and the descriptors it was asked to keep, until Release.
//
// Promises:
//   - An exit is delivered on Exits at least once per connection until it is
//     released, and never before the Spawn of that child has returned.
//   - Spawns of one pod are pipelined: pause clones in the order of requests,
//     children carry their recipes out side by side.
//   - A Start or Spawn that fails leaves nothing behind: no process, socket or
//     descriptor. If the node itself is killed meanwhile, a pause that was not
//     set up ends by itself, and a child that was not yet about to execve never
//     will.
//   - Closing a connection, or losing the node, changes nothing in the pod.
//
// All methods are safe for concurrent use. A connection costs two goroutines
// that sleep in the runtime's poller, and no thread.
//
// Floor: above the ground. It stands on the kernel and imports nothing of
// unipod; recipes come in through the Recipe interface, which
// *internal/recipe.Recipe fulfils.
package pause
