package cli

import (
	"context"
	"errors"
	"fmt"

	"unipod.dev/unipod/internal/node"
)

func (g *global) nodeConfig() node.Config {
	return node.Config{Root: g.root, Run: g.run, RuntimeEndpoint: g.endpoint}
}

// openNode is the running node, or one in this process when none runs.
func (g *global) openNode(ctx context.Context) (*node.Node, error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	n, err := node.Open(ctx, g.nodeConfig())
	var locked *node.LockedError
	if errors.As(err, &locked) {
		return node.Connect(ctx, g.nodeConfig())
	}
	return n, err
}

// connectNode is the running node; when none runs, that is the error.
func (g *global) connectNode(ctx context.Context) (*node.Node, error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	n, err := node.Connect(ctx, g.nodeConfig())
	if err != nil {
		return nil, fmt.Errorf("no node runs in %s (unipod play and unipod serve run one): %w", g.run, err)
	}
	return n, nil
}
