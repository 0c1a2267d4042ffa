{{/*
Labels and annotations of a pod, with what users add to those of every pod. Arguments: root, labels and annotations, both
as YAML. The chart selects pods by its own labels, so these stay.
*/}}
{{- define "llavamed.podMetadata" -}}
{{- range $key, $_ := .root.Values.podLabels -}}
{{- if or (hasPrefix "app.kubernetes.io/" $key) (hasPrefix "helm.sh/" $key) (hasPrefix "ray.io/" $key) -}}
{{- fail (printf "podLabels: %s is set by the chart or by KubeRay; use another key" $key) -}}
{{- end -}}
{{- end -}}
labels:
  {{- merge (fromYaml .labels) .root.Values.podLabels | toYaml | nindent 2 }}
{{- with merge (deepCopy .root.Values.podAnnotations) (fromYaml .annotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The same of a pod that the release itself makes. Arguments: root, component. */}}
{{- define "llavamed.ownPodMetadata" -}}
{{- $labels := printf "%s\napp.kubernetes.io/component: %s" (include "llavamed.selectorLabels" .root) .component -}}
{{- include "llavamed.podMetadata" (dict "root" .root "labels" $labels "annotations" "") -}}
{{- end }}
