package runtime

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/image"
)

// ListImages implements cri.Images.
func (r *Runtime) ListImages(ctx context.Context, req *runtimeapi.ListImagesRequest) (_ *runtimeapi.ListImagesResponse, err error) {
	defer toGRPC(&err)
	resp := &runtimeapi.ListImagesResponse{}
	if ref := req.GetFilter().GetImage().GetImage(); ref != "" {
		img, err := r.cfg.Images.Get(ctx, ref)
		if errdefs.IsNotFound(err) {
			return resp, nil
		}
		if err != nil {
			return nil, err
		}
		resp.Images = append(resp.Images, criImage(img))
		return resp, nil
	}
	list, err := r.cfg.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, img := range list {
		resp.Images = append(resp.Images, criImage(img))
	}
	return resp, nil
}

// criImage is an image in the CRI's words.
func criImage(img *image.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests,
		Size: uint64(img.Size), Pinned: img.Pinned,
		Spec: &runtimeapi.ImageSpec{Annotations: map[string]string{}},
	}
	user, _, _ := strings.Cut(img.Spec.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}

// ImageStatus implements cri.Images: an image that isn't here is an answer
// without one, not an error.
func (r *Runtime) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (_ *runtimeapi.ImageStatusResponse, err error) {
	defer toGRPC(&err)
	img, err := r.cfg.Images.Get(ctx, req.GetImage().GetImage())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(img)}
	if req.Verbose {
		resp.Info, err = verbose(map[string]any{"imageSpec": img.Spec, "manifest": img.Manifest})
	}
	return resp, err
}

// PullImage implements cri.Images.
func (r *Runtime) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (_ *runtimeapi.PullImageResponse, err error) {
	defer toGRPC(&err)
	var auth *image.Auth
	if a := req.GetAuth(); a != nil {
		auth = &image.Auth{
			Username: a.Username, Password: a.Password, Auth: a.Auth,
			ServerAddress: a.ServerAddress, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
		}
	}
	start := time.Now()
	img, err := r.cfg.Images.Pull(ctx, req.GetImage().GetImage(), image.PullOptions{Auth: auth})
	if err != nil {
		return nil, err
	}
	r.log.Info("image pulled", "image", req.Image.Image, "id", img.ID, "took", time.Since(start).Round(time.Millisecond))
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// RemoveImage implements cri.Images; it is idempotent.
func (r *Runtime) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (_ *runtimeapi.RemoveImageResponse, err error) {
	defer toGRPC(&err)
	if _, err := r.cfg.Images.Remove(ctx, req.GetImage().GetImage()); err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo implements cri.Images.
func (r *Runtime) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (_ *runtimeapi.ImageFsInfoResponse, err error) {
	defer toGRPC(&err)
	info, err := r.cfg.Images.FsInfo(ctx)
	if err != nil {
		return nil, err
	}
	images := &runtimeapi.FilesystemUsage{
		Timestamp:  info.At.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: info.Path},
		UsedBytes:  u64(info.UsedBytes),
		InodesUsed: u64(info.UsedInodes),
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{images},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{images},
	}, nil
}
