package fakecri

import (
	"context"
	"slices"

	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// AddImage makes an image present.
func (r *Runtime) AddImage(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addImage(name)
}

func (r *Runtime) addImage(name string) *runtimeapi.Image {
	image := &runtimeapi.Image{Id: "sha256:" + name, RepoTags: []string{name}, Size: 1 << 20, Spec: &runtimeapi.ImageSpec{Image: name}}
	r.images[name], r.images[image.Id] = image, image
	return image
}

// SetImage makes an image present with a size, pinned or not.
func (r *Runtime) SetImage(name string, size uint64, pinned bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	image := r.addImage(name)
	image.Size, image.Pinned = size, pinned
}

// Images are the names of the images present, in order.
func (r *Runtime) Images() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for name, image := range r.images {
		if name != image.Id {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// ListImages implements cri.Images.
func (r *Runtime) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	resp := &runtimeapi.ListImagesResponse{}
	for name, image := range r.images {
		if name == image.Id {
			resp.Images = append(resp.Images, clone(image))
		}
	}
	return resp, nil
}

// ImageStatus implements cri.Images.
func (r *Runtime) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	resp := &runtimeapi.ImageStatusResponse{}
	if image := r.images[req.GetImage().GetImage()]; image != nil {
		resp.Image = clone(image)
	}
	return resp, nil
}

// PullImage implements cri.Images.
func (r *Runtime) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	name := req.Image.Image
	r.mu.Lock()
	r.called("PullImage %s", name)
	pull, takes := r.Pull, r.PullTime
	r.mu.Unlock()
	if takes > 0 {
		timer := r.clock.NewTimer(takes)
		defer timer.Stop()
		select {
		case <-timer.C():
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	if pull != nil {
		if err := pull(name); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimeapi.PullImageResponse{ImageRef: r.addImage(name).Id}, nil
}

// RemoveImage implements cri.Images.
func (r *Runtime) RemoveImage(_ context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if image := r.images[req.GetImage().GetImage()]; image != nil {
		delete(r.images, image.Id)
		for _, tag := range image.RepoTags {
			delete(r.images, tag)
		}
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}
