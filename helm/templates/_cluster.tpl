{{/* The specification of the Ray cluster. */}}
{{- define "llavamed.clusterSpec" -}}
{{- $ray := .Values.ray -}}
rayVersion: {{ $ray.version | quote }}
upgradeStrategy:
  type: {{ $ray.upgradeStrategy }}
# KubeRay makes the token: a Secret with the cluster's name, key auth_token.
authOptions:
  mode: token
{{- if $ray.autoscaling.enabled }}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ int $ray.autoscaling.idleTimeoutSeconds }}
  securityContext:
    {{- include "llavamed.containerSecurity" "" | nindent 4 }}
{{- end }}
headGroupSpec:
  {{- include "llavamed.headGroup" (dict "root" $ "serve" false) | nindent 2 }}
workerGroupSpecs:
  {{- range include "llavamed.groups" . | fromYamlArray }}
  - {{ include "llavamed.workerGroup" (dict "root" $ "group" . "serve" false) | nindent 4 | trim }}
  {{- end }}
{{- end }}

{{/* The head. Arguments: root, serve. */}}
{{- define "llavamed.headGroup" -}}
{{- $group := set (deepCopy .root.Values.ray.head) "name" "head" -}}
rayStartParams:
  dashboard-host: 0.0.0.0
  metrics-export-port: "8080"
  num-cpus: "0"
  object-store-memory: {{ include "llavamed.objectStore" $group | quote }}
template:
  {{- include "llavamed.rayPod" (merge (dict "group" $group "head" true) .) | nindent 2 }}
{{- end }}

{{/* The values of each worker group, with its name: cpu, a100, and what ray.gpuGroups changes of a100. */}}
{{- define "llavamed.groups" -}}
{{- $ray := .Values.ray -}}
{{- $groups := list (set (deepCopy $ray.cpu) "name" "cpu") (set (deepCopy $ray.a100) "name" "a100") -}}
{{- $names := list "head" "cpu" "a100" -}}
{{- range $given := $ray.gpuGroups -}}
{{- $group := deepCopy $ray.a100 -}}
{{- range $key, $value := $given }}{{ $_ := set $group $key $value }}{{ end -}}
{{- if has $group.name $names }}{{ fail (printf "ray.gpuGroups: the name %s is taken; each group needs its own" $group.name) }}{{ end -}}
{{- $names = append $names $group.name -}}
{{- $groups = append $groups $group -}}
{{- end -}}
{{- toYaml $groups -}}
{{- end }}

{{/* One worker group. Arguments: root, group, serve. */}}
{{- define "llavamed.workerGroup" -}}
{{- $autoscaling := and .root.Values.ray.autoscaling.enabled (not .serve) -}}
{{- /* Helm reads a number from --set as int64 and one from a file as float64; templates cannot compare the two. */}}
{{- $min := int .group.minReplicas -}}
{{- $max := int .group.maxReplicas -}}
{{- $replicas := ternary $min (int .group.replicas) $autoscaling -}}
{{- if or (lt $replicas $min) (gt $replicas $max) -}}
{{- fail (printf "ray.%s: minReplicas=%d <= replicas=%d <= maxReplicas=%d does not hold; change one of them" .group.name $min $replicas $max) -}}
{{- end -}}
groupName: {{ .group.name | quote }}
{{- if not $autoscaling }}
replicas: {{ $replicas }}
{{- end }}
minReplicas: {{ $min }}
maxReplicas: {{ $max }}
# Defaults are written out for Argo CD, as for the ports.
numOfHosts: 1
priority: 0
rayStartParams:
  metrics-export-port: "8080"
  {{- if and .group.gpus (ne .group.gpuResource "nvidia.com/gpu") }}
  # KubeRay sets num-gpus only for resource names that it recognizes.
  num-gpus: {{ int .group.gpus | quote }}
  {{- end }}
  object-store-memory: {{ include "llavamed.objectStore" .group | quote }}
template:
  {{- include "llavamed.rayPod" (merge (dict "head" false) .) | nindent 2 }}
{{- end }}

{{/* What an upgrade can only apply to new Ray pods: the whole specification except the numbers of workers. */}}
{{- define "llavamed.podsChecksum" -}}
{{- $spec := include "llavamed.clusterSpec" . | fromYaml -}}
{{- $spec = omit $spec "upgradeStrategy" -}}
{{- $groups := list -}}
{{- range $spec.workerGroupSpecs }}{{ $groups = append $groups (omit . "replicas" "minReplicas" "maxReplicas") }}{{ end -}}
{{- $_ := set $spec "workerGroupSpecs" $groups -}}
{{- toJson $spec | sha256sum -}}
{{- end }}
