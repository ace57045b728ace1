package controllers_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"unipod.dev/unipod/internal/controllers"
)

func (s *space) volume(name, class string, change func(*v1.PersistentVolume)) {
	s.Helper()
	pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: s.ns + "-" + name}, Spec: v1.PersistentVolumeSpec{
		StorageClassName: class, Capacity: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")},
		AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}, PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimRetain,
		PersistentVolumeSource: v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/data"}},
	}}
	change(pv)
	_, err := s.CoreV1().PersistentVolumes().Create(s.ctx, pv, metav1.CreateOptions{})
	s.must(err)
}

func (s *space) claim(name, class string) {
	s.Helper()
	_, err := s.CoreV1().PersistentVolumeClaims(s.ns).Create(s.ctx, &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PersistentVolumeClaimSpec{
		StorageClassName: &class, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
		Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}},
	}}, metav1.CreateOptions{})
	s.must(err)
}

func (s *space) boundTo(claim, volume string) {
	s.Helper()
	s.until(claim+" is bound", func() bool {
		c, err := s.CoreV1().PersistentVolumeClaims(s.ns).Get(s.ctx, claim, metav1.GetOptions{})
		s.must(err)
		return c.Status.Phase == v1.ClaimBound && c.Spec.VolumeName == s.ns+"-"+volume
	})
}

func withClaim(name string) func(*v1.PodTemplateSpec) {
	return func(p *v1.PodTemplateSpec) {
		p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}
	}
}

// A claim is bound to a volume, a pod with it is scheduled, and neither can be
// taken from it.
func TestStaticVolume(t *testing.T) {
	s := newSpace(t)
	s.volume("hp", s.ns, func(*v1.PersistentVolume) {})
	s.claim("data", s.ns)
	s.boundTo("data", "hp")
	s.deployment("web", 1, withClaim("data"))
	s.rolledOut("web", "example.com/i:1", 1)

	claims, volumes := s.CoreV1().PersistentVolumeClaims(s.ns), s.CoreV1().PersistentVolumes()
	s.must(claims.Delete(s.ctx, "data", metav1.DeleteOptions{}))
	s.must(volumes.Delete(s.ctx, s.ns+"-hp", metav1.DeleteOptions{}))
	if c, err := claims.Get(s.ctx, "data", metav1.GetOptions{}); err != nil || c.DeletionTimestamp == nil {
		t.Errorf("a claim in use: %v", err)
	}
	s.must(s.AppsV1().Deployments(s.ns).Delete(s.ctx, "web", metav1.DeleteOptions{}))
	s.until("after the last user they go", func() bool {
		_, errC := claims.Get(s.ctx, "data", metav1.GetOptions{})
		_, errV := volumes.Get(s.ctx, s.ns+"-hp", metav1.GetOptions{})
		return apierrors.IsNotFound(errC) && apierrors.IsNotFound(errV)
	})
}

// A local volume says where it is, and its claim waits for the pod.
func TestLocalVolumeWaitsForConsumer(t *testing.T) {
	s := newSpace(t)
	classes := s.StorageV1().StorageClasses()
	_, err := classes.Create(s.ctx, &storage.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: s.ns}, Provisioner: "kubernetes.io/no-provisioner",
		VolumeBindingMode: ptr(storage.VolumeBindingWaitForFirstConsumer)}, metav1.CreateOptions{})
	s.must(err)
	defer func() { s.must(classes.Delete(s.ctx, s.ns, metav1.DeleteOptions{})) }()
	// A claim of a class that the binder doesn't know yet is bound at once.
	s.until("the class is known", func() bool {
		_, err := it.shared.Storage().V1().StorageClasses().Lister().Get(s.ns)
		return err == nil
	})
	at := func(node string) func(*v1.PersistentVolume) {
		return func(pv *v1.PersistentVolume) {
			pv.Spec.PersistentVolumeSource = v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: "/data"}}
			pv.Spec.NodeAffinity = &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
				MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{node}}}}}}}
		}
	}
	s.volume("far", s.ns, at("elsewhere"))
	s.claim("data", s.ns)
	s.event("data", "WaitForFirstConsumer")
	s.deployment("web", 1, withClaim("data"))
	if note := s.event("web", "FailedScheduling"); note != "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling." {
		t.Errorf("said: %s", note)
	}
	s.volume("here", s.ns, at(nodeName))
	s.boundTo("data", "here")
	s.rolledOut("web", "example.com/i:1", 1)
	s.must(s.CoreV1().PersistentVolumes().Delete(s.ctx, s.ns+"-far", metav1.DeleteOptions{}))
}

// A claim of the default class gets a directory, which goes with it.
func TestVolumeOnDemand(t *testing.T) {
	s := newSpace(t)
	claims := s.CoreV1().PersistentVolumeClaims(s.ns)
	_, err := claims.Create(s.ctx, &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: v1.PersistentVolumeClaimSpec{
		AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
		Resources:   v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}},
	}}, metav1.CreateOptions{})
	s.must(err)
	var name string
	s.until("data is bound", func() bool {
		c, err := claims.Get(s.ctx, "data", metav1.GetOptions{})
		s.must(err)
		name = c.Spec.VolumeName
		return c.Status.Phase == v1.ClaimBound
	})
	path := filepath.Join(it.volumes, name)
	pv, err := s.CoreV1().PersistentVolumes().Get(s.ctx, name, metav1.GetOptions{})
	s.must(err)
	if pv.Spec.Local == nil || pv.Spec.Local.Path != path || pv.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete {
		t.Errorf("the volume is %+v", pv.Spec)
	}
	s.deployment("web", 1, withClaim("data"))
	s.rolledOut("web", "example.com/i:1", 1)
	s.must(os.WriteFile(filepath.Join(path, "f"), nil, 0o600))
	s.must(s.AppsV1().Deployments(s.ns).Delete(s.ctx, "web", metav1.DeleteOptions{}))
	s.must(claims.Delete(s.ctx, "data", metav1.DeleteOptions{}))
	s.until("volume and directory go", func() bool {
		_, err := s.CoreV1().PersistentVolumes().Get(s.ctx, name, metav1.GetOptions{})
		_, errDir := os.Stat(path)
		return apierrors.IsNotFound(err) && os.IsNotExist(errDir)
	})
}

// What pretends to be made on demand is left alone when it is released.
func TestVolumeElsewhereIsLeft(t *testing.T) {
	s := newSpace(t)
	other := t.TempDir()
	s.volume("odd", s.ns, func(pv *v1.PersistentVolume) {
		pv.Annotations = map[string]string{"pv.kubernetes.io/provisioned-by": controllers.LocalProvisioner}
		pv.Spec.PersistentVolumeReclaimPolicy = v1.PersistentVolumeReclaimDelete
		pv.Spec.HostPath.Path = other
	})
	s.claim("data", s.ns)
	s.boundTo("data", "odd")
	s.must(s.CoreV1().PersistentVolumeClaims(s.ns).Delete(s.ctx, "data", metav1.DeleteOptions{}))
	s.until("reclaiming fails", func() bool {
		pv, err := s.CoreV1().PersistentVolumes().Get(s.ctx, s.ns+"-odd", metav1.GetOptions{})
		s.must(err)
		return pv.Status.Phase == v1.VolumeFailed && strings.Contains(pv.Status.Message, "left alone")
	})
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
	s.must(s.CoreV1().PersistentVolumes().Delete(s.ctx, s.ns+"-odd", metav1.DeleteOptions{}))
}

// A claim for which none can be made says why.
func TestVolumeRefused(t *testing.T) {
	s := newSpace(t)
	block := v1.PersistentVolumeBlock
	_, err := s.CoreV1().PersistentVolumeClaims(s.ns).Create(s.ctx, &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "raw"}, Spec: v1.PersistentVolumeClaimSpec{
		VolumeMode: &block, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
		Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}},
	}}, metav1.CreateOptions{})
	s.must(err)
	if note := s.event("raw", "ProvisioningFailed"); note != "Failed to create provisioner: spec.volumeMode: Block is not supported" {
		t.Errorf("said: %s", note)
	}
}

// A generic ephemeral volume's claim is made for the pod, and goes with it.
func TestEphemeralVolume(t *testing.T) {
	s := newSpace(t)
	s.volume("hp", s.ns, func(*v1.PersistentVolume) {})
	s.deployment("web", 1, func(p *v1.PodTemplateSpec) {
		p.Spec.Volumes = []v1.Volume{{Name: "scratch", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{VolumeClaimTemplate: &v1.PersistentVolumeClaimTemplate{
			Spec: v1.PersistentVolumeClaimSpec{StorageClassName: &s.ns, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
				Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}}},
		}}}}}
	})
	s.rolledOut("web", "example.com/i:1", 1)
	s.boundTo(s.pods()[0].Name+"-scratch", "hp")
	s.must(s.AppsV1().Deployments(s.ns).Delete(s.ctx, "web", metav1.DeleteOptions{}))
	s.until("the claim goes with the pod", func() bool {
		list, err := s.CoreV1().PersistentVolumeClaims(s.ns).List(s.ctx, metav1.ListOptions{})
		s.must(err)
		return len(list.Items) == 0
	})
	s.must(s.CoreV1().PersistentVolumes().Delete(s.ctx, s.ns+"-hp", metav1.DeleteOptions{}))
}
