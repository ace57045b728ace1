package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, data}
}
func dir(name string, mode int64) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}, ""}
}
func sym(name, to string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}, ""}
}
func hard(name, to string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to, Mode: 0o644}, ""}
}
func (e entry) xattr(k, v string) entry {
	if e.PAXRecords == nil {
		e.PAXRecords = map[string]string{}
	}
	e.PAXRecords[xattrRecord+k] = v
	e.Format = tar.FormatPAX
	return e
}
func (e entry) owner(uid, gid int) entry { e.Uid, e.Gid = uid, gid; return e }

var stamp = time.Unix(1_600_000_000, 0)

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.data))
		h.ModTime = stamp
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// stack applies layers, all before the first is finished, as pulls do. It
// returns the directories from the base up.
func stack(t testing.TB, layers ...[]byte) ([]string, error) {
	t.Helper()
	var dirs []string
	var open []*Layer
	for i, l := range layers {
		d := filepath.Join(t.TempDir(), "layer")
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		res, err := Apply(context.Background(), f, bytes.NewReader(l), Options{Base: i == 0})
		if err != nil {
			return nil, err
		}
		defer res.Close()
		dirs = append(dirs, d)
		open = append(open, res)
	}
	for i, l := range open {
		var below []*os.File
		for j := i - 1; j >= 0; j-- {
			f, err := os.Open(dirs[j])
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			below = append(below, f)
		}
		if err := l.Finish(below); err != nil {
			return nil, err
		}
	}
	return dirs, nil
}

// merged mounts the layers as a container would see them.
func merged(t testing.TB, dirs []string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting overlayfs needs root")
	}
	m := t.TempDir()
	empty := t.TempDir() // overlayfs wants two layers
	opts := "lowerdir="
	for i := len(dirs) - 1; i >= 0; i-- {
		opts += dirs[i] + ":"
	}
	if err := unix.Mount("overlay", m, "overlay", unix.MS_RDONLY, opts+empty); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(m, unix.MNT_DETACH) })
	return m
}

// tree prints what is below root, one line per file.
func tree(t testing.TB, root string) string {
	t.Helper()
	var lines []string
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, root+"/")
		line := fmt.Sprintf("%s %o %d:%d", rel, st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", b)
			if first, ok := inodes[st.Ino]; ok {
				line += " = " + first
			} else if st.Nlink > 1 {
				inodes[st.Ino] = rel
			}
		case unix.S_IFLNK:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + to
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func TestMerged(t *testing.T) {
	for _, tc := range []struct {
		name   string
		layers [][]entry
		want   string
	}{
		{"metadata of every kind", [][]entry{{
			dir("d", 0o2750).owner(7, 8), file("d/f", "data").owner(1000, 1001),
			entry{tar.Header{Name: "suid", Typeflag: tar.TypeReg, Mode: 0o4755}, "s"},
			sym("l", "/d/f").owner(3, 4), hard("h", "d/f"),
			entry{tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}, ""},
			entry{tar.Header{Name: "loop", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 7, Devminor: 300}, ""},
			entry{tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, ""},
		}}, `
d 42750 7:8
d/f 100644 1000:1001 "data"
fifo 10600 0:0
h 100644 1000:1001 "data" = d/f
l 120777 3:4 -> /d/f
loop 60660 0:0 7:300
null 20666 0:0 1:3
suid 104755 0:0 "s"`},
		{"whiteouts hide files and directories", [][]entry{
			{file("a", "1"), dir("d", 0o755), file("d/x", "1"), file("keep", "1")},
			{file(".wh.a", ""), file(".wh.d", ""), file(".wh.never", "")},
		}, `
keep 100644 0:0 "1"`},
		{"a file of its own beats the whiteout in any order", [][]entry{
			{file("a", "1"), file("b", "1")},
			{file("a", "2"), file(".wh.a", ""), file(".wh.b", ""), file("b", "2")},
		}, `
a 100644 0:0 "2"
b 100644 0:0 "2"`},
		{"a directory of its own after the whiteout is opaque", [][]entry{
			{dir("d", 0o755), file("d/old", "1")},
			{file(".wh.d", ""), dir("d", 0o700), file("d/new", "2")},
		}, `
d 40700 0:0
d/new 100644 0:0 "2"`},
		{"a directory of its own before the whiteout is opaque", [][]entry{
			{dir("d", 0o755), file("d/old", "1")},
			{dir("d", 0o700), file("d/new", "2"), file(".wh.d", "")},
		}, `
d 40700 0:0
d/new 100644 0:0 "2"`},
		{"an implied directory after its whiteout is opaque", [][]entry{
			{dir("d", 0o755), file("d/old", "1")},
			{file(".wh.d", ""), file("d/new", "2")},
		}, `
d 40755 0:0
d/new 100644 0:0 "2"`},
		{"opaque marker", [][]entry{
			{dir("d", 0o755), file("d/old", "1"), dir("d/sub", 0o755), file("d/sub/x", "1")},
			{dir("d", 0o755), file("d/new", "2"), file("d/.wh..wh..opq", "")},
		}, `
d 40755 0:0
d/new 100644 0:0 "2"`},
		{"opaque root", [][]entry{
			{file("old", "1"), dir("both", 0o755), file("both/old", "1"), dir("gone", 0o755)},
			{file("mid", "1")},
			{file(".wh..wh..opq", ""), file("new", "3"), dir("both", 0o711), file("both/new", "3")},
		}, `
both 40711 0:0
both/new 100644 0:0 "3"
new 100644 0:0 "3"`},
		{"whiteouts in the base layer mean nothing", [][]entry{
			{file("a", "1"), file(".wh.a", ""), file(".wh.b", ""), file(".wh..wh..opq", "")},
		}, `
a 100644 0:0 "1"`},
		{"AUFS bookkeeping is dropped", [][]entry{
			{file(".wh..wh.plnk/12", "x"), file("d/.wh..wh.x/y/.wh..wh..opq", ""), file(".wh..wh.aufs", "x"), file("a", "1")},
		}, `
a 100644 0:0 "1"`},
		{"implied parents keep their metadata", [][]entry{
			{dir("tmp", 0o1777), dir("home", 0o755), dir("home/u", 0o700).owner(1000, 1000)},
			{file("etc", "unrelated")},
			{file("tmp/f", "3"), file("home/u/g", "3"), file("new/dir/h", "3")},
		}, `
etc 100644 0:0 "unrelated"
home 40755 0:0
home/u 40700 1000:1000
home/u/g 100644 0:0 "3"
new 40755 0:0
new/dir 40755 0:0
new/dir/h 100644 0:0 "3"
tmp 41777 0:0
tmp/f 100644 0:0 "3"`},
		{"an implied parent is not looked for behind a whiteout", [][]entry{
			{dir("d", 0o1777)},
			{file(".wh.d", "")},
			{file("d/f", "3")},
		}, `
d 40755 0:0
d/f 100644 0:0 "3"`},
		{"hard link to a lower layer", [][]entry{
			{dir("bin", 0o711), entry{tar.Header{Name: "bin/tool", Typeflag: tar.TypeReg, Mode: 0o4755}, "elf"}.owner(5, 6)},
			{hard("alias", "bin/tool"), hard("again", "/bin/tool"), hard("third", "alias")},
		}, `
again 104755 5:6 "elf"
alias 104755 5:6 "elf" = again
bin 40711 0:0
bin/tool 104755 5:6 "elf" = again
third 104755 5:6 "elf" = again`},
		{"hard link to a lower layer whose target is replaced later", [][]entry{
			{file("t", "old")},
			{hard("a", "t"), hard("b", "t"), file("t", "new")},
		}, `
a 100644 0:0 "old"
b 100644 0:0 "old" = a
t 100644 0:0 "new"`},
		{"hard link to a lower layer that is replaced later", [][]entry{
			{file("t", "old")},
			{hard("a", "t"), file("a", "mine")},
		}, `
a 100644 0:0 "mine"
t 100644 0:0 "old"`},
		{"hard link to a symbolic link and a device below", [][]entry{
			{sym("l", "x"), entry{tar.Header{Name: "n", Typeflag: tar.TypeChar, Mode: 0o600, Devmajor: 1, Devminor: 3}, ""}},
			{hard("l2", "l"), hard("n2", "n")},
		}, `
l 120777 0:0 -> x
l2 120777 0:0 -> x
n 20600 0:0 1:3
n2 20600 0:0 1:3`},
		{"entries through symbolic links of the layer", [][]entry{{
			dir("usr", 0o755), dir("usr/lib", 0o755), sym("lib", "usr/lib"), file("lib/so", "1"),
			sym("abs", "/usr"), file("abs/x", "1"), sym("dangling", "made/later"), file("dangling/y", "1"),
		}}, `
abs 120777 0:0 -> /usr
dangling 120777 0:0 -> made/later
lib 120777 0:0 -> usr/lib
made 40755 0:0
made/later 40755 0:0
made/later/y 100644 0:0 "1"
usr 40755 0:0
usr/lib 40755 0:0
usr/lib/so 100644 0:0 "1"
usr/x 100644 0:0 "1"`},
		{"later entries replace earlier ones", [][]entry{{
			dir("d", 0o755), file("d/x", "1"), file("d", "file now"),
			file("f", "1"), dir("f", 0o700), sym("s", "f"), file("s", "plain"),
		}}, `
d 100644 0:0 "file now"
f 40700 0:0
s 100644 0:0 "plain"`},
		{"the root entry keeps 0755", [][]entry{{dir("./", 0o700), file("./a", "1")}}, `
a 100644 0:0 "1"`},
		{"absolute names are relative to the root", [][]entry{{file("/etc/x", "1"), file("//y", "2")}}, `
etc 40755 0:0
etc/x 100644 0:0 "1"
y 100644 0:0 "2"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var tars [][]byte
			for _, l := range tc.layers {
				tars = append(tars, archive(t, l...))
			}
			dirs, err := stack(t, tars...)
			if err != nil {
				t.Fatal(err)
			}
			m := merged(t, dirs)
			if got, want := tree(t, m), strings.TrimSpace(tc.want); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			var st unix.Stat_t
			if err := unix.Stat(m, &st); err != nil || st.Mode&0o7777 != 0o755 {
				t.Errorf("root has mode %o, %v", st.Mode, err)
			}
		})
	}
}

func TestTimes(t *testing.T) {
	dirs, err := stack(t,
		archive(t, dir("d", 0o755), file("d/f", "x"), sym("d/s", "f")),
		archive(t, file("d/g", "y")))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"d", "d/f", "d/s"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dirs[0], p), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mtim.Sec != stamp.Unix() {
			t.Errorf("%s: modified %d, want %d", p, st.Mtim.Sec, stamp.Unix())
		}
	}
	fi, err := os.Stat(filepath.Join(dirs[1], "d"))
	if err != nil || !fi.ModTime().Equal(stamp) {
		t.Errorf("implied d: modified %v, %v; want the time of the directory below", fi.ModTime(), err)
	}
}

func TestXattrs(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	dirs, err := stack(t,
		archive(t, file("ping", "elf").owner(1, 1).xattr("security.capability", capability).xattr("user.note", "hi"),
			dir("d", 0o755).xattr("user.dir", "v").xattr("trusted.overlay.opaque", "y"),
			dir("d2", 0o755).xattr("trusted.overlay.redirect", "/etc"),
			sym("l", "x").xattr("user.impossible", "v")),
		archive(t, file("d/new", ""), hard("pong", "ping")))
	if err != nil {
		t.Fatal(err)
	}
	get := func(path, name string) string {
		b := make([]byte, 256)
		n, err := unix.Lgetxattr(path, name, b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
	none := unix.ENODATA.Error()
	for _, c := range []struct{ layer, path, name, want string }{
		{dirs[0], "ping", "security.capability", capability},
		{dirs[0], "ping", "user.note", "hi"},
		{dirs[0], "d", "user.dir", "v"},
		{dirs[0], "d", "trusted.overlay.opaque", none},
		{dirs[0], "d2", "trusted.overlay.redirect", none},
		{dirs[1], "d", "user.dir", "v"},
		{dirs[1], "pong", "security.capability", capability},
	} {
		if got := get(filepath.Join(c.layer, c.path), c.name); got != c.want {
			t.Errorf("%s of %s: %q, want %q", c.name, c.path, got, c.want)
		}
	}
}

func TestDefaultACLIsNotInherited(t *testing.T) {
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"
	dirs, err := stack(t, archive(t, dir("d", 0o2755).owner(0, 42).xattr("system.posix_acl_default", acl), file("d/f", "x")))
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dirs[0], "d/f"), &st); err != nil || st.Gid != 0 {
		t.Errorf("group of d/f is %d, %v: inherited", st.Gid, err)
	}
	if n, err := unix.Lgetxattr(filepath.Join(dirs[0], "d/f"), "system.posix_acl_access", nil); err == nil {
		t.Errorf("d/f inherited an ACL of %d bytes", n)
	}
}

func TestSparse(t *testing.T) {
	data := make([]byte, 8<<20)
	copy(data[3<<20:], "island")
	dirs, err := stack(t, archive(t, file("sparse", string(data)), file("zeros", string(data[:2<<20]))))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"sparse": data, "zeros": data[:2<<20]} {
		got, err := os.ReadFile(filepath.Join(dirs[0], name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: content differs (%d bytes, %v)", name, len(got), err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dirs[0], name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Blocks*512 > 64<<10 {
			t.Errorf("%s occupies %d bytes", name, st.Blocks*512)
		}
	}
}

func TestHostile(t *testing.T) {
	for _, tc := range []struct {
		name    string
		layers  [][]entry
		wantErr string // part of the error, "" if the layer is harmless
	}{
		{"parent in the name", [][]entry{{file("../escaped", "x")}}, "leads out of the root"},
		{"parent inside the name", [][]entry{{dir("a", 0o755), file("a/../../escaped", "x")}}, "leads out of the root"},
		{"parent alone", [][]entry{{dir("..", 0o777)}}, "leads out of the root"},
		{"hard link out", [][]entry{{hard("h", "../outside")}}, "leads out of the root"},
		{"hard link to an absolute host file", [][]entry{{hard("h", "/etc/passwd")}}, "does not exist"},
		{"hard link to nothing in any layer", [][]entry{{file("a", "")}, {hard("h", "nowhere/x")}}, "in no layer"},
		{"hard link to a directory", [][]entry{{dir("d", 0o755), hard("h", "d")}}, "not permitted"},
		{"hard link to a directory below", [][]entry{{dir("d", 0o755)}, {hard("h", "d")}}, "is a directory"},
		{"hard link through a link below", [][]entry{{sym("out", "../../..")}, {hard("h", "out/outside")}}, "in no layer"},
		{"symlinked parent", [][]entry{{sym("s", "../.."), file("s/escaped", "x")}}, ""},
		{"absolute symlinked parent", [][]entry{{sym("s", "%OUT%"), file("s/escaped", "x")}}, ""},
		{"chain of symlinks", [][]entry{{sym("a", "b/.."), sym("b", "../.."), file("a/escaped", "x")}}, ""},
		{"loop of symlinks", [][]entry{{sym("a", "b"), sym("b", "a"), file("a/x", "x")}}, "symbolic links"},
		{"write through a symlink", [][]entry{{sym("victim", "%OUT%/outside"), file("victim", "overwritten")}}, ""},
		{"directory over a symlink", [][]entry{{sym("victim", "%OUT%"), dir("victim", 0o777), file("victim/escaped", "x")}}, ""},
		{"whiteout of the parent", [][]entry{{file("a", "")}, {file("d/.wh...", "")}}, "invalid"},
		{"whiteout of itself", [][]entry{{file("a", "")}, {file("d/.wh..", "")}}, "invalid"},
		{"whiteout of nothing", [][]entry{{file("a", "")}, {file("d/.wh.", "")}}, "invalid"},
		{"whiteout through a symlink", [][]entry{{file("a", "")}, {sym("s", "%OUT%"), file("s/.wh.outside", "")}}, ""},
		{"opaque through a symlink", [][]entry{{file("a", "")}, {sym("s", "%OUT%"), file("s/.wh..wh..opq", "")}}, ""},
		{"file as a directory", [][]entry{{file("f", "x"), file("f/g", "x")}}, "not a directory"},
		{"name too long", [][]entry{{file(strings.Repeat("n", 300), "x")}}, "too long"},
		{"owner out of range", [][]entry{{file("f", "x").owner(1<<40, 0)}}, "out of range"},
		{"device out of range", [][]entry{{{tar.Header{Name: "n", Typeflag: tar.TypeChar, Devmajor: 1 << 13}, ""}}}, "out of range"},
		{"unknown type", [][]entry{{{tar.Header{Name: "n", Typeflag: 'Z'}, ""}}}, "unsupported type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out := t.TempDir()
			if err := os.WriteFile(filepath.Join(out, "outside"), []byte("untouched"), 0o600); err != nil {
				t.Fatal(err)
			}
			before := tree(t, out)
			var tars [][]byte
			for _, l := range tc.layers {
				for i := range l {
					l[i].Linkname = strings.ReplaceAll(l[i].Linkname, "%OUT%", out)
				}
				tars = append(tars, archive(t, l...))
			}
			_, err := stack(t, tars...)
			switch {
			case tc.wantErr == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)):
				t.Errorf("error %v, want %q", err, tc.wantErr)
			}
			if after := tree(t, out); after != before {
				t.Errorf("outside changed:\n%s", after)
			}
		})
	}
}

func TestTruncated(t *testing.T) {
	whole := archive(t, file("a", strings.Repeat("x", 100_000)))
	_, err := stack(t, whole[:50_000])
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Apply(ctx, f, bytes.NewReader(archive(t, file("a", ""))), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestDescriptorsAreClosed(t *testing.T) {
	count := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	run := func() {
		d := t.TempDir()
		base, top := filepath.Join(d, "base"), filepath.Join(d, "top")
		for i, data := range [][]byte{
			archive(t, dir("a", 0o755), file("a/b", "1"), file("x/y/z", "1"), sym("s", "x/y"), file("s/w", "")),
			archive(t, file("a/c", ""), hard("h", "a/b"), file("q/.wh.r", ""), file("a/.wh..wh..opq", "")),
		} {
			p := []string{base, top}[i]
			os.Mkdir(p, 0o755)
			f, _ := os.Open(p)
			l, err := Apply(context.Background(), f, bytes.NewReader(data), Options{Base: i == 0})
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
			var below []*os.File
			if i == 1 {
				b, _ := os.Open(base)
				below = append(below, b)
			}
			if err := l.Finish(below); err != nil {
				t.Fatal(err)
			}
			for _, b := range below {
				b.Close()
			}
		}
	}
	run()
	before := count()
	run()
	if after := count(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
