package podspec

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	hashutil "k8s.io/kubernetes/pkg/util/hash"
)

// The labels that kubelet and crictl find pods and containers by.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"
)

// The annotations kubelet leaves on a container so that it can be understood
// after a restart of the node, when its pod may be gone.
const (
	annotationHash                     = "io.kubernetes.container.hash"
	annotationRestartCount             = "io.kubernetes.container.restartCount"
	annotationTerminationMessagePath   = "io.kubernetes.container.terminationMessagePath"
	annotationTerminationMessagePolicy = "io.kubernetes.container.terminationMessagePolicy"
	annotationPreStop                  = "io.kubernetes.container.preStopHandler"
	annotationPorts                    = "io.kubernetes.container.ports"
	annotationDeletionGrace            = "io.kubernetes.pod.deletionGracePeriod"
	annotationTerminationGrace         = "io.kubernetes.pod.terminationGracePeriod"
)

func podLabels(pod *v1.Pod) map[string]string {
	labels := map[string]string{}
	maps.Copy(labels, pod.Labels)
	labels[LabelPodName] = pod.Name
	labels[LabelPodNamespace] = pod.Namespace
	labels[LabelPodUID] = string(pod.UID)
	return labels
}

func containerLabels(pod *v1.Pod, c *v1.Container) map[string]string {
	return map[string]string{
		LabelPodName:       pod.Name,
		LabelPodNamespace:  pod.Namespace,
		LabelPodUID:        string(pod.UID),
		LabelContainerName: c.Name,
	}
}

func containerAnnotations(pod *v1.Pod, c *v1.Container, restartCount int) (map[string]string, error) {
	a := map[string]string{
		annotationHash:                     strconv.FormatUint(Hash(c), 16),
		annotationRestartCount:             strconv.Itoa(restartCount),
		annotationTerminationMessagePath:   c.TerminationMessagePath,
		annotationTerminationMessagePolicy: string(c.TerminationMessagePolicy),
	}
	if g := pod.DeletionGracePeriodSeconds; g != nil {
		a[annotationDeletionGrace] = strconv.FormatInt(*g, 10)
	}
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		a[annotationTerminationGrace] = strconv.FormatInt(*g, 10)
	}
	put := func(key string, value any) error {
		text, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encoding annotation %s of container %q: %w", key, c.Name, err)
		}
		a[key] = string(text)
		return nil
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		if err := put(annotationPreStop, c.Lifecycle.PreStop); err != nil {
			return nil, err
		}
	}
	if len(c.Ports) > 0 {
		if err := put(annotationPorts, c.Ports); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Hash identifies what of a container can't change while it runs (its name and
// image): a different hash means that it must be replaced. It is kubelet's, so
// that either adopts the other's containers.
func Hash(c *v1.Container) uint64 {
	h := fnv.New32a()
	// A map of two strings can always be encoded.
	text, _ := json.Marshal(map[string]string{"name": c.Name, "image": c.Image})
	hashutil.DeepHashObject(h, text)
	return uint64(h.Sum32())
}

// ContainerInfo is what a container's labels and annotations tell of it.
type ContainerInfo struct {
	PodName, PodNamespace    string
	PodUID                   types.UID
	Name                     string
	Hash                     uint64
	RestartCount             int
	TerminationMessagePath   string
	TerminationMessagePolicy v1.TerminationMessagePolicy
	DeletionGrace            *int64 // seconds
	TerminationGrace         *int64 // seconds
	PreStop                  *v1.LifecycleHandler
	Ports                    []v1.ContainerPort
}

// ParseContainer reads back what [ContainerConfig] wrote. Labels and
// annotations that are missing leave zero values; one that can't be read is an
// error.
func ParseContainer(labels, annotations map[string]string) (ContainerInfo, error) {
	info := ContainerInfo{
		PodName:                  labels[LabelPodName],
		PodNamespace:             labels[LabelPodNamespace],
		PodUID:                   types.UID(labels[LabelPodUID]),
		Name:                     labels[LabelContainerName],
		TerminationMessagePath:   annotations[annotationTerminationMessagePath],
		TerminationMessagePolicy: v1.TerminationMessagePolicy(annotations[annotationTerminationMessagePolicy]),
	}
	var firstErr error
	read := func(key string, parse func(string) error) {
		text, ok := annotations[key]
		if !ok {
			return
		}
		if err := parse(text); err != nil && firstErr == nil {
			firstErr = fmt.Errorf("container %q of pod %s/%s: annotation %s: %w", info.Name, info.PodNamespace, info.PodName, key, err)
		}
	}
	seconds := func(to **int64) func(string) error {
		return func(text string) error {
			n, err := strconv.ParseInt(text, 10, 64)
			if err == nil {
				*to = &n
			}
			return err
		}
	}
	read(annotationHash, func(text string) (err error) {
		info.Hash, err = strconv.ParseUint(text, 16, 64)
		return err
	})
	read(annotationRestartCount, func(text string) (err error) {
		info.RestartCount, err = strconv.Atoi(text)
		return err
	})
	read(annotationDeletionGrace, seconds(&info.DeletionGrace))
	read(annotationTerminationGrace, seconds(&info.TerminationGrace))
	read(annotationPreStop, func(text string) error { return json.Unmarshal([]byte(text), &info.PreStop) })
	read(annotationPorts, func(text string) error { return json.Unmarshal([]byte(text), &info.Ports) })
	return info, firstErr
}
