package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// setupHostPath checks that the path is what the volume says it is, or makes
// it. The path is the manifest author's own choice and is followed as it is.
func setupHostPath(source *v1.HostPathVolumeSource) (Mounted, error) {
	if slices.Contains(strings.Split(filepath.ToSlash(source.Path), "/"), "..") {
		return Mounted{}, fmt.Errorf("invalid HostPath `%s`: must not contain '..'", source.Path)
	}
	if source.Type != nil {
		if err := checkHostPath(source.Path, *source.Type); err != nil {
			return Mounted{}, err
		}
	}
	return Mounted{HostPath: source.Path}, nil
}

func checkHostPath(path string, want v1.HostPathType) error {
	_, err := os.Stat(path)
	missing := err != nil
	switch want {
	case v1.HostPathUnset:
		return nil
	case v1.HostPathDirectoryOrCreate:
		if missing {
			return os.MkdirAll(path, 0o755)
		}
		return expectType(path, v1.HostPathDirectory, "directory")
	case v1.HostPathDirectory:
		return expectType(path, v1.HostPathDirectory, "directory")
	case v1.HostPathFileOrCreate:
		if missing {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
		return expectType(path, v1.HostPathFile, "file")
	case v1.HostPathFile:
		return expectType(path, v1.HostPathFile, "file")
	case v1.HostPathSocket:
		return expectType(path, v1.HostPathSocket, "socket file")
	case v1.HostPathCharDev:
		return expectType(path, v1.HostPathCharDev, "character device")
	case v1.HostPathBlockDev:
		return expectType(path, v1.HostPathBlockDev, "block device")
	}
	return fmt.Errorf("%s is an invalid volume type", want)
}

func expectType(path string, want v1.HostPathType, name string) error {
	got, err := hostPathType(path)
	switch {
	case err != nil:
		return fmt.Errorf("hostPath type check failed, %s is not a %s, unable to determine its type: %w", path, name, err)
	case got != want:
		return fmt.Errorf("hostPath type check failed: %s is not a %s, it's a %s", path, name, got)
	}
	return nil
}

func hostPathType(path string) (v1.HostPathType, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("path %q does not exist", path)
	}
	if err != nil {
		return "", err
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return v1.HostPathFile, nil
	case mode.IsDir():
		return v1.HostPathDirectory, nil
	case mode&fs.ModeSocket != 0:
		return v1.HostPathSocket, nil
	case mode&fs.ModeCharDevice != 0:
		return v1.HostPathCharDev, nil
	case mode&fs.ModeDevice != 0:
		return v1.HostPathBlockDev, nil
	}
	return "", fmt.Errorf("only recognise file, directory, socket, block device and character device")
}
