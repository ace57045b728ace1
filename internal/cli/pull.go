package cli

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/image"
	"unipod.dev/unipod/internal/node"
	"unipod.dev/unipod/internal/progress"
)

// pullsShown is a runtime whose pulls are seen on the screen.
type pullsShown struct {
	cri.Service
	images node.ImageAdmin
	screen *progress.Screen
}

// PullImage implements cri.Images.
func (p *pullsShown) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := req.GetImage().GetImage()
	if !p.screen.Live() {
		return p.Service.PullImage(ctx, req)
	}
	opts := node.PullOptions{Progress: func(at image.Progress) { p.screen.Set(ref, pullBar(ref, at)) }}
	if a := req.GetAuth(); a != nil {
		opts.Auth = &image.Auth{
			Username: a.Username, Password: a.Password, Auth: a.Auth, ServerAddress: a.ServerAddress,
			IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
		}
	}
	img, err := p.images.Pull(ctx, ref, opts)
	p.screen.Set(ref, "")
	if err != nil {
		return nil, cri.ToGRPC(err)
	}
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}
