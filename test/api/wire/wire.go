// Package wire has requests for an API to be hostile with, and a fuzzer that
// sends what it makes of them to a server in a process of its own, over TLS.
//
// What go test -fuzz runs is compiled with counters, and all that is linked with
// it: with Kubernetes in the same program that takes longer than most
// fuzzing. So this package imports nothing but the standard library; the
// server is package api's test, compiled as ever. Floor: none; the test suites import
// it.
package wire

import "strings"

// Request is one request of HTTP: its method, path and query, the types of its
// body and of the answer, and the body.
type Request struct{ Method, Target, Content, Accept, Body string }

const onePod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i"}]}}`

// Odd are requests at the edges of what makes sense.
var Odd = []Request{
	{"GET", "/api/v1/pods?limit=1", "", "application/json", ""},
	{"GET", "/api/v1/namespaces/default/pods?fieldSelector=metadata.name%3Da&labelSelector=a+in+(b)", "", "application/json;as=Table;v=v1;g=meta.k8s.io", ""},
	{"GET", "/api/v1/pods?watch=1&resourceVersion=1&timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", "", "application/vnd.kubernetes.protobuf;stream=watch", ""},
	{"GET", "/apis/apps/v1/deployments?continue=e30&resourceVersion=-1", "", "application/yaml", ""},
	{"GET", "/api/v1/pods?resourceVersion=99999999999999999999&resourceVersionMatch=Exact", "", "", ""},
	{"GET", "/apis", "", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", ""},
	{"GET", "/openapi/v3", "", "", ""},
	{"GET", "/api/v1/namespaces/default/pods/a/log?follow=true&tailLines=-3", "", "", ""},
	{"POST", "/api/v1/namespaces/default/pods", "application/json", "", onePod},
	{"POST", "/api/v1/namespaces/default/pods?dryRun=All&fieldValidation=Strict", "application/yaml", "", "apiVersion: v1\nkind: Pod\nmetadata: &a {name: *a}\n"},
	{"POST", "/api/v1/namespaces/default/pods", "application/vnd.kubernetes.protobuf", "", "k8s\x00\n\t\n\x02v1\x12\x03Pod\x12\x02\n\x00"},
	{"POST", "/api/v1/namespaces/default/pods/a/binding", "application/json", "", `{"target":{"name":"n"}}`},
	{"POST", "/api/v1/namespaces/default/serviceaccounts/default/token", "application/json", "", `{"spec":{"expirationSeconds":-1}}`},
	{"POST", "/api/v1/namespaces/default/pods/a/exec?command=a&stdin=true", "", "", ""},
	{"PUT", "/api/v1/namespaces/default/configmaps/a", "application/json", "", `{"metadata":{"name":"b","resourceVersion":"x"}}`},
	{"PUT", "/apis/apps/v1/namespaces/default/deployments/a/scale", "application/json", "", `{"spec":{"replicas":1e99}}`},
	{"PATCH", "/api/v1/namespaces/default/configmaps/a", "application/json-patch+json", "", `[{"op":"copy","from":"","path":"/data/a"}]`},
	{"PATCH", "/api/v1/namespaces/default/pods/a", "application/strategic-merge-patch+json", "", `{"spec":{"containers":[{"$patch":"delete","name":"c"}],"$retainKeys":["x"]}}`},
	{"PATCH", "/api/v1/namespaces/default/configmaps/a?fieldManager=f&force=true", "application/apply-patch+yaml", "", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, managedFields: [{}]}"},
	{"DELETE", "/api/v1/namespaces/default/configmaps?propagationPolicy=x&gracePeriodSeconds=-1", "application/json", "", `{"preconditions":{"uid":""}}`},
	{"POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", "application/json", "", `{"spec":{}}`},
	{"POST", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies", "application/json", "", `{"metadata":{"name":"p"},"spec":{"validations":[{"expression":"object.x.all(y, y.z"}]}}`},
	{"POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "application/json", "", `{"metadata":{"name":"a.b"},"spec":{"group":"b","versions":[{"schema":{"openAPIV3Schema":{"type":"object","properties":{"a":{"$ref":"#"}}}}}]}}`},
	{"GET", "/api/v1/namespaces/..%2f..%2f/pods/%00", "", "", ""},
	{"GET", "//api//v1/../v1/pods", "", "*/*;q=x", ""},
	{"BREW", "/apis/batch/v1/namespaces/default/cronjobs/x/status", "text/html", "", strings.Repeat("[", 20000)},
	{"GET", "/metrics", "", "", ""},
	{"GET", "/readyz/store?verbose&exclude=x", "", "", ""},
	{"GET", "/api/v1/namespaces/default/services/https:a:b/proxy/%2e%2e/", "", "", ""},
	{"GET", "/apis/a/b/c/d/e/f/g", "", "", ""},
	{"GET", "/openapi/v3/../v2?hash=%00", "", "", ""},
	{"GET", "/debug/pprof/cmdline", "", "", ""},
	{"GET", "/apis/metrics.k8s.io/v1beta1/nodes/x", "", "", ""},
	{"POST", "/api/v1/namespaces/default/configmaps?dryRun=All&fieldValidation=Strict", "application/json", "", `{"metadata":{"name":"a"},"data":{"a":1}}`},
	{"POST", "/api/v1/namespaces/default/pods?dryRun=All", "application/vnd.kubernetes.protobuf", "", "k8s\x00\x0a\x04\x0a\x02v1\xff\xff"},
	{"PATCH", "/api/v1/namespaces/default?dryRun=All&fieldManager=f", "application/apply-patch+yaml", "", "a: &a [*a]"},
	{"PATCH", "/api/v1/namespaces/default?dryRun=All", "application/strategic-merge-patch+json", "", `{"$patch":"replace","metadata":null}`},
	{"PUT", "/apis/apps/v1/namespaces/default/deployments/x/scale?dryRun=All", "application/cbor", "", "\xbf\xff"},
	{"OPTIONS", "*", "", "", ""},
}

// Valid are objects that are accepted as they are.
var Valid = map[string]string{
	"/api/v1/namespaces/default/pods":                                   `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"a":"b"}},"spec":{"securityContext":{"runAsUser":1,"fsGroup":2,"sysctls":[{"name":"net.ipv4.tcp_syncookies","value":"1"}]},"volumes":[{"name":"v","emptyDir":{"sizeLimit":"1Mi"}},{"name":"w","projected":{"sources":[{"serviceAccountToken":{"path":"t"}},{"downwardAPI":{"items":[{"path":"x","fieldRef":{"fieldPath":"metadata.name"}}]}}]}}],"initContainers":[{"name":"i","image":"i","restartPolicy":"Always"}],"containers":[{"name":"c","image":"i","env":[{"name":"E","valueFrom":{"resourceFieldRef":{"resource":"limits.cpu"}}}],"ports":[{"containerPort":80,"hostPort":8080}],"resources":{"requests":{"cpu":"1m"},"limits":{"memory":"1Gi"}},"volumeMounts":[{"name":"v","mountPath":"/v","subPath":"s"}],"livenessProbe":{"httpGet":{"path":"/","port":"http"},"periodSeconds":3},"lifecycle":{"preStop":{"exec":{"command":["a"]}}}}],"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"k","operator":"Gt","values":["1"]}]}]}}},"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"z","whenUnsatisfiable":"DoNotSchedule"}],"tolerations":[{"operator":"Exists"}]}}`,
	"/api/v1/namespaces/default/services":                               `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"type":"NodePort","selector":{"a":"b"},"ports":[{"name":"h","port":80,"targetPort":"x","protocol":"TCP"},{"name":"u","port":81,"protocol":"UDP"}],"sessionAffinity":"ClientIP","ipFamilyPolicy":"PreferDualStack"}}`,
	"/api/v1/namespaces/default/configmaps":                             `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","annotations":{"a":"b"},"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"p","uid":"u"}],"finalizers":["a/b"]},"data":{"a":"b"},"binaryData":{"c":"AA=="}}`,
	"/api/v1/namespaces/default/secrets":                                `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"},"type":"kubernetes.io/dockerconfigjson","data":{".dockerconfigjson":"e30="}}`,
	"/api/v1/namespaces/default/persistentvolumeclaims":                 `{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":"c"},"spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1Gi"}},"dataSource":{"kind":"PersistentVolumeClaim","name":"x"}}}`,
	"/api/v1/persistentvolumes":                                         `{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"v"},"spec":{"capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"],"hostPath":{"path":"/x"},"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchFields":[{"key":"metadata.name","operator":"In","values":["n"]}]}]}}}}`,
	"/api/v1/namespaces/default/resourcequotas":                         `{"apiVersion":"v1","kind":"ResourceQuota","metadata":{"name":"q"},"spec":{"hard":{"secrets":"1000"},"scopeSelector":{"matchExpressions":[{"scopeName":"PriorityClass","operator":"In","values":["a"]}]}}}`,
	"/api/v1/namespaces/default/limitranges":                            `{"apiVersion":"v1","kind":"LimitRange","metadata":{"name":"l"},"spec":{"limits":[{"type":"Container","default":{"cpu":"1"},"defaultRequest":{"cpu":"1m"},"maxLimitRequestRatio":{"memory":"2"}}]}}`,
	"/api/v1/nodes":                                                     `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"},"spec":{"taints":[{"key":"a","effect":"NoSchedule"}],"podCIDRs":["10.0.0.0/24"]}}`,
	"/api/v1/namespaces/default/events":                                 `{"apiVersion":"v1","kind":"Event","metadata":{"name":"e"},"involvedObject":{"namespace":"default","kind":"Pod"},"eventTime":"2026-01-01T00:00:00.000000Z","reportingComponent":"a.b/c","reportingInstance":"i","action":"a","type":"Normal","series":{"count":2,"lastObservedTime":"2026-01-01T00:00:00.000000Z"}}`,
	"/apis/apps/v1/namespaces/default/deployments":                      `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"replicas":1,"selector":{"matchLabels":{"a":"b"},"matchExpressions":[{"key":"a","operator":"In","values":["b"]}]},"strategy":{"rollingUpdate":{"maxSurge":"25%","maxUnavailable":1}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`,
	"/apis/apps/v1/namespaces/default/statefulsets":                     `{"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"name":"s"},"spec":{"serviceName":"x","selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}},"volumeClaimTemplates":[{"metadata":{"name":"v"},"spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1"}}}}],"ordinals":{"start":1}}}`,
	"/apis/batch/v1/namespaces/default/jobs":                            `{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"j"},"spec":{"completions":2,"completionMode":"Indexed","backoffLimitPerIndex":1,"podFailurePolicy":{"rules":[{"action":"FailIndex","onExitCodes":{"operator":"In","values":[1]}}]},"successPolicy":{"rules":[{"succeededIndexes":"0-1","succeededCount":1}]},"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}`,
	"/apis/batch/v1/namespaces/default/cronjobs":                        `{"apiVersion":"batch/v1","kind":"CronJob","metadata":{"name":"c"},"spec":{"schedule":"*/5 * * * *","timeZone":"Etc/UTC","jobTemplate":{"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}}}`,
	"/apis/networking.k8s.io/v1/namespaces/default/ingresses":           `{"apiVersion":"networking.k8s.io/v1","kind":"Ingress","metadata":{"name":"i"},"spec":{"tls":[{"hosts":["a.b"],"secretName":"s"}],"rules":[{"host":"*.a.b","http":{"paths":[{"path":"/","pathType":"Prefix","backend":{"service":{"name":"s","port":{"number":80}}}}]}}]}}`,
	"/apis/networking.k8s.io/v1/namespaces/default/networkpolicies":     `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"n"},"spec":{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}],"ports":[{"port":1,"endPort":2}]}]}}`,
	"/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers":  `{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","metadata":{"name":"h"},"spec":{"maxReplicas":3,"scaleTargetRef":{"kind":"Deployment","name":"d"},"metrics":[{"type":"Resource","resource":{"name":"cpu","target":{"type":"Utilization","averageUtilization":50}}}],"behavior":{"scaleUp":{"policies":[{"type":"Pods","value":1,"periodSeconds":1}]}}}}`,
	"/apis/policy/v1/namespaces/default/poddisruptionbudgets":           `{"apiVersion":"policy/v1","kind":"PodDisruptionBudget","metadata":{"name":"b"},"spec":{"minAvailable":"50%","selector":{"matchLabels":{"a":"b"}}}}`,
	"/apis/rbac.authorization.k8s.io/v1/clusterroles":                   `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"r"},"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["get"],"resourceNames":["a"]},{"nonResourceURLs":["/a*"],"verbs":["get"]}],"aggregationRule":{"clusterRoleSelectors":[{"matchLabels":{"a":"b"}}]}}`,
	"/apis/storage.k8s.io/v1/storageclasses":                            `{"apiVersion":"storage.k8s.io/v1","kind":"StorageClass","metadata":{"name":"s"},"provisioner":"a.b/c","allowedTopologies":[{"matchLabelExpressions":[{"key":"k","values":["v"]}]}]}`,
	"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices":       `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"e"},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":true}}],"ports":[{"name":"p","port":1}]}`,
	"/apis/coordination.k8s.io/v1/namespaces/default/leases":            `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"l"},"spec":{"holderIdentity":"h","leaseDurationSeconds":1,"renewTime":"2026-01-01T00:00:00.000000Z"}}`,
	"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies": `{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy","metadata":{"name":"p"},"spec":{"paramKind":{"apiVersion":"v1","kind":"ConfigMap"},"matchConstraints":{"resourceRules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["podtemplates"]}]},"matchConditions":[{"name":"m","expression":"true"}],"variables":[{"name":"v","expression":"object.metadata.name"}],"validations":[{"expression":"variables.v.matches('^[a-z]+$') && object.metadata.labels.all(k, k != 'x')","messageExpression":"'no ' + variables.v"}],"auditAnnotations":[{"key":"k","valueExpression":"'v'"}]}}`,
	"/apis/apiextensions.k8s.io/v1/customresourcedefinitions":           `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"as.b.c"},"spec":{"group":"b.c","scope":"Namespaced","names":{"plural":"as","singular":"a","kind":"A","shortNames":["x"]},"versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{},"scale":{"specReplicasPath":".spec.n","statusReplicasPath":".status.n"}},"additionalPrinterColumns":[{"name":"N","type":"integer","jsonPath":".spec.n"}],"selectableFields":[{"jsonPath":".spec.s"}],"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","properties":{"n":{"type":"integer","default":1,"maximum":5},"s":{"type":"string","pattern":"^a$"},"l":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["k"],"items":{"type":"object","required":["k"],"properties":{"k":{"type":"string"}}}}},"x-kubernetes-validations":[{"rule":"self.n > 0","message":"m"}]},"status":{"type":"object","properties":{"n":{"type":"integer"}}}}}}}]}}`,
	"/apis/authorization.k8s.io/v1/subjectaccessreviews":                `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"user":"u","groups":["g"],"resourceAttributes":{"verb":"get","resource":"pods","namespace":"n","labelSelector":{"requirements":[{"key":"a","operator":"In","values":["b"]}]}}}}`,
	"/apis/certificates.k8s.io/v1/certificatesigningrequests":           `{"apiVersion":"certificates.k8s.io/v1","kind":"CertificateSigningRequest","metadata":{"name":"c"},"spec":{"request":"AA==","signerName":"kubernetes.io/kube-apiserver-client","usages":["client auth"],"expirationSeconds":600}}`,
}
