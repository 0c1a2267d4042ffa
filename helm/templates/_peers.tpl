{{/* KubeRay's operator as a peer of network policies, by the label that its chart and its Kustomize files share. */}}
{{- define "llavamed.operatorPeer" -}}
- namespaceSelector: {}
  podSelector:
    matchLabels:
      app.kubernetes.io/component: kuberay-operator
{{- end }}

{{/* The API server as peers: on GKE and AKS it reaches pods through agents, which the two label differently. */}}
{{- define "llavamed.apiServerPeers" -}}
{{- range list "k8s-app" "app" }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: kube-system
  podSelector:
    matchLabels:
      {{ . }}: konnectivity-agent
{{- end }}
{{- end }}
