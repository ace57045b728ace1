package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"unipod.dev/unipod/internal/image"
	"unipod.dev/unipod/internal/node"
	"unipod.dev/unipod/internal/progress"
)

func newImage(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Pull, list, load, save and remove images",
		Long: `Pull, list, load, save and remove images.

Registries, mirrors and credentials are configured as for other tools:
registries.conf, certs.d/hosts.toml, config.json or auth.json, policy.json.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImagePull(g), newImageList(g), newImageInspect(g), newImageLoad(g), newImageSave(g), newImageRemove(g), newImagePrune(g))
	return cmd
}

// withImages runs f with the images of the running node, or with the store
// itself when there is none.
func (g *global) withImages(cmd *cobra.Command, f func(ctx context.Context, images node.ImageAdmin) error) error {
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	n, err := g.openNode(ctx)
	if err != nil {
		return err
	}
	return errors.Join(f(ctx, n.Images()), n.Close(context.WithoutCancel(ctx)))
}

func newImagePull(g *global) *cobra.Command {
	var platform string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull IMAGE...",
		Short: "Pull images from their registries",
		Example: `  unipod image pull nginx:1.29
  unipod image pull --platform linux/arm64 registry.example.com/team/app@sha256:...`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.withImages(cmd, func(ctx context.Context, images node.ImageAdmin) error {
				screen := progress.NewScreen(os.Stdout, os.Stderr, false)
				defer screen.Close()
				var failed error
				for _, ref := range args {
					opts := node.PullOptions{Platform: platform}
					if !quiet {
						opts.Progress = func(p image.Progress) { screen.Set(ref, pullBar(ref, p)) }
					}
					img, err := images.Pull(ctx, ref, opts)
					screen.Set(ref, "")
					if err != nil {
						failed = errors.Join(failed, err)
						continue
					}
					fmt.Fprintln(cmd.OutOrStdout(), img.ID)
				}
				return failed
			})
		},
	}
	cmd.Flags().StringVar(&platform, "platform", "", "pull for another platform: os/arch[/variant]")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress bars")
	return cmd
}

// pullBar is a pull in one line: the bytes of all its layers.
func pullBar(ref string, p image.Progress) string {
	// Of the name as much as tells it from others, so that the bar fits.
	name, digest, _ := strings.Cut(ref[strings.LastIndexByte(ref, '/')+1:], "@sha256:")
	if digest != "" {
		name += "@" + shortID(digest)
	}
	var done, total int64
	for _, l := range p.Layers {
		if l.Status == image.LayerExists {
			continue
		}
		total += l.Total
		switch l.Status {
		case image.LayerDone, image.LayerUnpacking:
			done += l.Total
		default:
			done += l.Current
		}
	}
	return progress.Bar(name, strings.ToLower(string(p.Phase)), done, total)
}

func newImageList(g *global) *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List images",
		Example: `  unipod image ls
  unipod image ls -o json | jq '.[].RepoTags'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withImages(cmd, func(ctx context.Context, images node.ImageAdmin) error {
				all, err := images.List(ctx)
				if err != nil {
					return err
				}
				if quiet {
					for _, img := range all {
						fmt.Fprintln(cmd.OutOrStdout(), img.ID)
					}
					return nil
				}
				return write(cmd.OutOrStdout(), format, imageViews(all), func(w io.Writer) error {
					return table(w, []string{"IMAGE", "TAG", "ID", "SIZE", "AGE", ""}, imageRows(all))
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print image IDs only")
	outputFlag(cmd, &format)
	return cmd
}

// imageRows are the lines of the table: one per name, or one for an image
// without any.
func imageRows(all []*image.Image) [][]string {
	var rows [][]string
	for _, img := range all {
		note := ""
		if img.Pinned {
			note = "pinned"
		}
		names := img.RepoTags
		if len(names) == 0 {
			names = []string{"<none>:<none>"}
			if len(img.RepoDigests) > 0 {
				repo, _, _ := strings.Cut(img.RepoDigests[0], "@")
				names = []string{repo + ":<none>"}
			}
		}
		for _, name := range names {
			colon := strings.LastIndexByte(name, ':')
			rows = append(rows, []string{name[:colon], name[colon+1:], shortID(img.ID), progress.Bytes(img.Size), age(img.Added), note})
		}
	}
	return rows
}

// imageView is what -o prints of an image: the CRI's field names, and the
// image's own configuration.
type imageView struct {
	ID          string   `json:"id"`
	RepoTags    []string `json:"repoTags"`
	RepoDigests []string `json:"repoDigests"`
	Size        int64    `json:"size"`
	Pinned      bool     `json:"pinned"`
	Added       string   `json:"added"`
	Manifest    string   `json:"manifest"`
	Config      any      `json:"config,omitempty"`
}

func imageViews(all []*image.Image) []imageView {
	views := []imageView{}
	for _, img := range all {
		views = append(views, imageViewOf(img, false))
	}
	return views
}

func imageViewOf(img *image.Image, config bool) imageView {
	v := imageView{
		ID: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: img.Size, Pinned: img.Pinned,
		Added: img.Added.UTC().Format("2006-01-02T15:04:05Z"), Manifest: img.Manifest.String(),
	}
	if config {
		v.Config = img.Spec
	}
	return v
}

func newImageInspect(g *global) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "inspect IMAGE...",
		Short: "Print what is known of images, their configuration included",
		Example: `  unipod image inspect nginx:1.29
  unipod image inspect 3f2a91c0e4b1 | jq '.[].config.config.Cmd'`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.withImages(cmd, func(ctx context.Context, images node.ImageAdmin) error {
				views := []imageView{}
				var missing error
				for _, ref := range args {
					img, err := images.Get(ctx, ref)
					if err != nil {
						missing = errors.Join(missing, err)
						continue
					}
					views = append(views, imageViewOf(img, true))
				}
				if format == "" {
					format = "json"
				}
				return errors.Join(missing, write(cmd.OutOrStdout(), format, views, nil))
			})
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

func newImageLoad(g *global) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "load FILE|DIR|-...",
		Short: "Load images from archives",
		Long: `Load images from archives: a tar of docker save or of an OCI layout (plain,
gzip or zstd), or a directory in the OCI layout. "-" is standard input.`,
		Example: `  unipod image load app.tar
  docker save app:1 | unipod image load -
  unipod image load --name localhost/app:1 ./oci-layout`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.withImages(cmd, func(ctx context.Context, images node.ImageAdmin) error {
				for _, path := range args {
					var loaded []*image.Image
					var err error
					if path == "-" {
						loaded, err = images.Load(ctx, cmd.InOrStdin(), name, nil)
					} else {
						loaded, err = images.LoadPath(ctx, path, name, nil)
					}
					if err != nil {
						return fmt.Errorf("%s: %w", path, err)
					}
					for _, img := range loaded {
						fmt.Fprintf(cmd.OutOrStdout(), "loaded %s\n", nameOf(img))
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of an image that has none in its archive")
	return cmd
}

// nameOf is what a person calls an image.
func nameOf(img *image.Image) string {
	if len(img.RepoTags) > 0 {
		return strings.Join(img.RepoTags, ", ")
	}
	return img.ID
}

func newImageSave(g *global) *cobra.Command {
	var output, format string
	cmd := &cobra.Command{
		Use:   "save IMAGE...",
		Short: "Save images to an archive",
		Example: `  unipod image save -o app.tar localhost/app:1
  unipod image save --format docker-archive localhost/app:1 | ssh other unipod image load -`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output == "" && term.IsTerminal(int(os.Stdout.Fd())) {
				return usage("an archive is nothing for a terminal: redirect standard output or use --output FILE")
			}
			return g.withImages(cmd, func(ctx context.Context, images node.ImageAdmin) error {
				w := cmd.OutOrStdout()
				if output == "" {
					return images.Save(ctx, w, format, args...)
				}
				return saveTo(output, func(w io.Writer) error { return images.Save(ctx, w, format, args...) })
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write instead of standard output")
	cmd.Flags().StringVar(&format, "format", "oci-archive", "oci-archive or docker-archive")
	return cmd
}

// saveTo writes a file that is there whole or not at all.
func saveTo(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".unipod-save-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it has been renamed, as it should
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func newImageRemove(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rm IMAGE...",
		Aliases: []string{"remove"},
		Short:   "Remove images, by name or ID",
		Long: `Remove images. A name is taken away; an image without names is deleted. An ID
means the image with all its names. What containers use stays on the disk until
they are gone.`,
		Example: "  unipod image rm nginx:1.28 3f2a91c0e4b1",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.withImages(cmd, func(ctx context.Context, images node.ImageAdmin) error {
				var failed error
				for _, ref := range args {
					r, err := images.Remove(ctx, ref)
					if err != nil {
						failed = errors.Join(failed, err)
						continue
					}
					printRemoved(cmd.OutOrStdout(), r)
				}
				return failed
			})
		},
	}
	return cmd
}

func newImagePrune(g *global) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that are not needed",
		Long: `Remove images whose tag has moved on to another; with --all every image that no
container uses.`,
		Example: "  unipod image prune --all",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withImages(cmd, func(ctx context.Context, images node.ImageAdmin) error {
				r, err := images.Prune(ctx, all)
				if err != nil {
					return err
				}
				printRemoved(cmd.OutOrStdout(), r)
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "every image that no container uses")
	return cmd
}

func printRemoved(w io.Writer, r *image.Removed) {
	for _, name := range r.Untagged {
		fmt.Fprintf(w, "untagged %s\n", name)
	}
	for _, id := range r.Deleted {
		fmt.Fprintf(w, "deleted %s\n", id)
	}
}
