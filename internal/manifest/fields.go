package manifest

// verdict says what becomes of a field that a manifest sets.
type verdict struct {
	kind   kind
	reason string
}

type kind int

const (
	// honoured fields, with all that is below them, are carried out.
	honoured kind = iota
	// idle fields can mean nothing on a single node without an API; they are
	// accepted, with a warning that gives the reason.
	idle
	// refused fields are errors that give the reason.
	refused
	// judged fields depend on their value: judge.go has the rule.
	judged
)

var yes = verdict{kind: honoured}

func no(reason string) verdict        { return verdict{refused, reason} }
func noEffect(reason string) verdict  { return verdict{idle, reason} }
func dependsOn(reason string) verdict { return verdict{judged, reason} }
func under(path string, in map[string]verdict, out map[string]verdict) {
	for field, v := range in {
		out[path+"."+field] = v
	}
}

// podFields is the verdict of every field of a Pod. The path of a list's
// element ends in "[]". A field that isn't here, and isn't below one that is,
// is refused; a test walks Kubernetes' types and fails when a new version has
// fields that nobody has decided on.
var podFields = buildPodFields()

const (
	needsAPI  = "it needs a Kubernetes API server, which this node doesn't have"
	oneNode   = "there is one node and no scheduler, so there is nothing to choose"
	notYet    = "unipod doesn't support it yet"
	notLinux  = "it is for Windows"
	removedUp = "Kubernetes itself no longer supports it"
	setByNode = "it is set when the object is created"
)

func buildPodFields() map[string]verdict {
	f := map[string]verdict{
		"apiVersion": yes,
		"kind":       yes,
		"status":     noEffect("a pod's status is what is observed of it"),
	}
	under("metadata", metadataFields, f)
	under("spec", specFields, f)
	under("spec.securityContext", podSecurityFields, f)
	under("spec.volumes[]", volumeFields, f)
	under("spec.volumes[].projected", map[string]verdict{"defaultMode": yes, "defaultUser": yes}, f)
	under("spec.volumes[].projected.sources[]", projectionFields, f)
	for _, list := range []string{"spec.containers[]", "spec.initContainers[]"} {
		under(list, containerFields, f)
		under(list+".resources", map[string]verdict{
			"limits":   dependsOn("extended resources need a device plugin"),
			"requests": dependsOn("extended resources need a device plugin"),
			"claims":   no("dynamic resource allocation: " + needsAPI),
		}, f)
		under(list+".securityContext", containerSecurityFields, f)
	}
	return f
}

// metadataFields are those of every kind.
var metadataFields = map[string]verdict{
	"name":                       yes,
	"generateName":               yes,
	"namespace":                  yes,
	"labels":                     yes,
	"annotations":                yes,
	"uid":                        noEffect(setByNode),
	"creationTimestamp":          noEffect(setByNode),
	"generation":                 noEffect(setByNode),
	"selfLink":                   noEffect(removedUp),
	"managedFields":              noEffect("fields have no managers without an API server"),
	"resourceVersion":            no("resourceVersion should not be set on objects to be created"),
	"deletionTimestamp":          no("an object can't be created deleted"),
	"deletionGracePeriodSeconds": no("an object can't be created deleted"),
	"ownerReferences":            no("owners are looked up, and their dependents collected, by the API; " + needsAPI),
	"finalizers":                 no("nothing here would ever remove them, so the pod could not be deleted"),
}

var specFields = map[string]verdict{
	"restartPolicy":                 yes,
	"terminationGracePeriodSeconds": yes,
	"activeDeadlineSeconds":         yes,
	"dnsPolicy":                     yes,
	"dnsConfig":                     yes,
	"hostNetwork":                   yes,
	"hostPID":                       yes,
	"hostIPC":                       yes,
	"hostUsers":                     yes,
	"shareProcessNamespace":         yes,
	"imagePullSecrets":              yes,
	"hostname":                      yes,
	"subdomain":                     yes,
	"setHostnameAsFQDN":             yes,
	"hostnameOverride":              yes,
	"hostAliases":                   yes,
	"readinessGates":                yes,
	"enableServiceLinks":            yes,
	"resources":                     yes,
	"os":                            dependsOn("only linux runs here"),
	"priority":                      yes,
	"priorityClassName":             dependsOn("PriorityClasses beside the built-in ones need an API server"),
	"nodeName":                      dependsOn("it must be this node"),
	"nodeSelector":                  dependsOn("it must select this node"),
	"affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution":  dependsOn("it must select this node"),
	"affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution": noEffect(oneNode),
	"affinity.podAffinity":         noEffect(oneNode),
	"affinity.podAntiAffinity":     noEffect(oneNode),
	"schedulerName":                noEffect(oneNode),
	"tolerations":                  noEffect("the node has no taints"),
	"topologySpreadConstraints":    noEffect(oneNode),
	"preemptionPolicy":             noEffect("no pod is preempted: " + oneNode),
	"serviceAccountName":           dependsOn("there is nobody to issue tokens"),
	"serviceAccount":               dependsOn("there is nobody to issue tokens"),
	"automountServiceAccountToken": dependsOn("there is nobody to issue tokens"),
	"ephemeralContainers":          no("they can only be added to a pod that runs"),
	"runtimeClassName":             no("RuntimeClasses are API objects; " + needsAPI),
	"overhead":                     no("only a RuntimeClass sets it, and RuntimeClasses are API objects; " + needsAPI),
	"schedulingGates":              no("nothing here removes gates, so the pod would never run"),
	"resourceClaims":               no("dynamic resource allocation: " + needsAPI),
	"schedulingGroup":              no("nothing here schedules groups of pods"),
	"evictionResponders":           no(needsAPI),
}

var podSecurityFields = map[string]verdict{
	"runAsUser":                yes,
	"runAsGroup":               yes,
	"runAsNonRoot":             yes,
	"supplementalGroups":       yes,
	"supplementalGroupsPolicy": yes,
	"fsGroup":                  yes,
	"sysctls":                  yes,
	"seccompProfile":           yes,
	"appArmorProfile":          yes,
	"seLinuxOptions":           yes,
	"fsGroupChangePolicy":      noEffect("it has no effect on ephemeral volumes, and there are no others here"),
	"seLinuxChangePolicy":      noEffect("it has no effect on ephemeral volumes, and there are no others here"),
	"windowsOptions":           no(notLinux),
}

var containerFields = map[string]verdict{
	"name":                     yes,
	"image":                    yes,
	"command":                  yes,
	"args":                     yes,
	"workingDir":               yes,
	"ports":                    yes,
	"envFrom":                  yes,
	"env":                      yes,
	"resizePolicy":             yes,
	"restartPolicy":            yes,
	"restartPolicyRules":       yes,
	"volumeMounts":             yes,
	"livenessProbe":            yes,
	"readinessProbe":           yes,
	"startupProbe":             yes,
	"lifecycle":                yes,
	"terminationMessagePath":   yes,
	"terminationMessagePolicy": yes,
	"imagePullPolicy":          yes,
	"stdin":                    yes,
	"stdinOnce":                yes,
	"tty":                      yes,
	"volumeDevices":            no("block volumes come from persistent volume claims; " + needsAPI),
}

var containerSecurityFields = map[string]verdict{
	"capabilities":             yes,
	"privileged":               yes,
	"seLinuxOptions":           yes,
	"runAsUser":                yes,
	"runAsGroup":               yes,
	"runAsNonRoot":             yes,
	"readOnlyRootFilesystem":   yes,
	"allowPrivilegeEscalation": yes,
	"procMount":                yes,
	"seccompProfile":           yes,
	"appArmorProfile":          yes,
	"windowsOptions":           no(notLinux),
}

var volumeFields = map[string]verdict{
	"name":                  yes,
	"emptyDir":              yes,
	"hostPath":              yes,
	"configMap":             yes,
	"secret":                yes,
	"downwardAPI":           yes,
	"image":                 yes,
	"nfs":                   no(notYet),
	"iscsi":                 no(notYet),
	"fc":                    no(notYet),
	"persistentVolumeClaim": no("claims are API objects; " + needsAPI),
	"ephemeral":             no("claims are API objects; " + needsAPI),
	"csi":                   no("CSI drivers are registered with the API; " + needsAPI),
	"flexVolume":            no(removedUp),
	"gitRepo":               no(removedUp),
	"gcePersistentDisk":     no(removedUp),
	"awsElasticBlockStore":  no(removedUp),
	"glusterfs":             no(removedUp),
	"rbd":                   no(removedUp),
	"cinder":                no(removedUp),
	"cephfs":                no(removedUp),
	"flocker":               no(removedUp),
	"azureFile":             no(removedUp),
	"azureDisk":             no(removedUp),
	"vsphereVolume":         no(removedUp),
	"quobyte":               no(removedUp),
	"photonPersistentDisk":  no(removedUp),
	"portworxVolume":        no(removedUp),
	"scaleIO":               no(removedUp),
	"storageos":             no(removedUp),
}

var projectionFields = map[string]verdict{
	"secret":              yes,
	"configMap":           yes,
	"downwardAPI":         yes,
	"serviceAccountToken": no("there is nobody to issue tokens: " + needsAPI),
	"clusterTrustBundle":  no("trust bundles are API objects; " + needsAPI),
	"podCertificate":      no("there is nobody to issue certificates: " + needsAPI),
}

// configMapFields and secretFields are the verdicts of the other kinds.
var (
	configMapFields = buildDataFields("data", "binaryData", "immutable")
	secretFields    = buildDataFields("data", "stringData", "type", "immutable")
)

func buildDataFields(names ...string) map[string]verdict {
	f := map[string]verdict{"apiVersion": yes, "kind": yes}
	for _, name := range names {
		f[name] = yes
	}
	under("metadata", metadataFields, f)
	return f
}
