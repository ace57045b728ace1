// Package image owns the images of the node: their blobs, their unpacked
// layers and the names that point to them, all below one directory.
//
// It stands on containerd's libraries used in-process: content/local for
// blobs, core/metadata on bolt for names, references and garbage collection,
// snapshots/overlay for layers. Unpacking is its own (see the unpack
// package), with all layers of an image at the same time.
//
// Promises:
//
//   - One process at a time owns a store; another gets an error that names it.
//   - An image that Pull or Load returned survives a power cut: its layers were
//     synced before it was recorded.
//   - A crash at any instant leaves garbage at most, which the next Open
//     removes. Nothing to remove is the usual case and costs Open nothing.
//   - Layers handed out by Layers stay until ReleaseLayers, also when the image
//     is removed in between and when the process is restarted.
//   - All methods of Store are safe for concurrent use; concurrent pulls of the
//     same image are one.
//
// Registries, archives and layers are hostile. What is stored was verified
// against its digest, what is unpacked cannot leave its directory, and a
// registry that stalls is given up.
//
// Errors wrap the kinds of github.com/containerd/errdefs: NotFound (no such
// image), Unauthenticated and PermissionDenied (credentials), DeadlineExceeded
// (stalled or out of time), ResourceExhausted (disk full), Unavailable (store
// in use, registry not reachable), FailedPrecondition (policy),
// InvalidArgument (reference or archive that makes no sense).
//
// Floor: 1. It may import internal/sys and nothing else of unipod.
package image
