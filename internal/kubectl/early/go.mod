module early.unipod.dev

go 1.26.6

require k8s.io/kubectl v0.37.2
