package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"

	"unipod.dev/unipod/internal/cri"
)

// openForeign is a node whose pods another runtime runs, such as containerd:
// of ours only the directories and their lock are left.
func openForeign(ctx context.Context, cfg Config) (_ *Node, err error) {
	for _, dir := range []string{cfg.Root, cfg.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the node's directory: %w", err)
		}
	}
	unlock, err := lock(cfg.Root)
	if err != nil {
		return nil, err
	}
	n, err := connectForeign(ctx, cfg)
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	n.close = append([]func() error{unlock}, n.close...)
	return n, nil
}

func connectForeign(ctx context.Context, cfg Config) (*Node, error) {
	svc, closer, err := cri.Dial(ctx, cfg.RuntimeEndpoint)
	if err != nil {
		return nil, fmt.Errorf("the runtime at %s: %w", cfg.RuntimeEndpoint, err)
	}
	return &Node{cfg: cfg, svc: svc, images: foreignImages{cfg.RuntimeEndpoint}, close: []func() error{closer.Close}}, nil
}

// Foreign tells whether another runtime than ours runs the node's pods.
func (n *Node) Foreign() bool { return n.cfg.RuntimeEndpoint != "" }

// foreignImages says that another runtime's images are not ours to keep.
type foreignImages struct{ endpoint string }

func (f foreignImages) refuse() error {
	return fmt.Errorf("images are kept by the runtime at %s, use its own tools: %w", f.endpoint, errdefs.ErrNotImplemented)
}

func (f foreignImages) Pull(context.Context, string, PullOptions) (*Image, error) {
	return nil, f.refuse()
}
func (f foreignImages) Get(context.Context, string) (*Image, error) { return nil, f.refuse() }
func (f foreignImages) List(context.Context) ([]*Image, error)      { return nil, f.refuse() }
func (f foreignImages) Load(context.Context, io.Reader, string, func(Progress)) ([]*Image, error) {
	return nil, f.refuse()
}
func (f foreignImages) LoadPath(context.Context, string, string, func(Progress)) ([]*Image, error) {
	return nil, f.refuse()
}
func (f foreignImages) Save(context.Context, io.Writer, string, ...string) error { return f.refuse() }
func (f foreignImages) Remove(context.Context, string) (*Removed, error)         { return nil, f.refuse() }
func (f foreignImages) Prune(context.Context, bool) (*Removed, error)            { return nil, f.refuse() }
