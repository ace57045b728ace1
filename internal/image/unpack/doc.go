// Package unpack turns the tar stream of an image layer into a directory that
// overlayfs can use as a lower layer.
//
// It owns the translation from the layer format of the OCI image
// specification (https://github.com/opencontainers/image-spec/blob/main/layer.md)
// to files: whiteouts become 0:0 character devices, opaque markers the
// trusted.overlay.opaque attribute.
//
// The stream is hostile. Every path is resolved by descriptor inside the
// layer's directory, where symbolic links and ".." cannot lead out of it; a
// name that tries is an error. Attributes of the trusted namespace are
// dropped, since they would steer overlayfs itself.
//
// Layers of one image may be applied at the same time. What depends on the
// layers below (directories a layer implies but does not list, hard links to
// files of other layers, an opaque root) is only recorded by Apply and done by
// Layer.Finish, which must be called from the bottom layer up.
//
// Nothing is synced to the disk: the caller syncs the file system once, for
// all layers of an image, before it records that they exist.
//
// Floor: 1, a part of internal/image. It imports nothing of unipod.
package unpack
