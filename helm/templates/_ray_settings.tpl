{{/* An amount of memory such as 1.5Gi, in bytes. */}}
{{- define "llavamed.bytes" -}}
{{- $unit := regexFind "[A-Za-z]+$" . -}}
{{- $factors := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "M" 1000000 "G" 1000000000 "T" 1000000000000 -}}
{{- mulf (trimSuffix $unit . | float64) (get $factors $unit) | int64 -}}
{{- end }}

{{/*
The size of Ray's object store, in bytes: /dev/shm but for a tenth, which NCCL uses. By itself Ray takes 30 % of the
memory, and the disk in place of /dev/shm where that is smaller. Argument: a group's values, with its name.
*/}}
{{- define "llavamed.objectStore" -}}
{{- $shared := include "llavamed.bytes" .sharedMemory | int64 -}}
{{- if or (lt $shared 104857600) (ge $shared (include "llavamed.bytes" .memory | int64)) -}}
{{- fail (printf "ray.%s: sharedMemory=%s is part of memory=%s, and must be less, and 100Mi or more" .name .sharedMemory .memory) -}}
{{- end -}}
{{- mulf $shared 0.9 | int64 -}}
{{- end }}

{{/*
The resources of a Ray container. Kubernetes counts the volume of the weights against the disk of the pod's containers, and
evicts a pod that has more. Arguments: those of the pod.
*/}}
{{- define "llavamed.rayResources" -}}
{{- $group := deepCopy .group -}}
{{- $weights := .root.Values.ray.weights -}}
{{- if and $group.gpus $weights.uri -}}
{{- $disk := add (include "llavamed.bytes" $group.disk | int64) (include "llavamed.bytes" $weights.size | int64) -}}
{{- $_ := set $group "disk" (toString $disk) -}}
{{- end -}}
{{- if and $group.gpus (hasKey ($group.extraResources | default dict) $group.gpuResource) -}}
{{- fail (printf "ray.%s.extraResources: %s is the resource of the GPUs; set gpus=%v instead" $group.name $group.gpuResource (get $group.extraResources $group.gpuResource)) -}}
{{- end -}}
{{- include "llavamed.resources" $group -}}
{{- end }}

{{/* The nodes of a pod. Argument: a group's values. */}}
{{- define "llavamed.placement" -}}
{{- with .runtimeClass }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $selector := deepCopy .nodeSelector }}
{{- $name := .name }}
{{- with .nodeLabel }}
{{- if ne (get $selector .key | default .value) .value }}
{{- fail (printf "ray.%s.nodeSelector: asks for %s=%s, and nodeLabel for %s; set nodeLabel, and leave it out here" $name .key (get $selector .key) .value) }}
{{- end }}
{{- $_ := set $selector .key .value }}
{{- end }}
{{- with $selector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What all containers of a Ray pod need to reach storage, such as a proxy. Arguments: those of the pod. */}}
{{- define "llavamed.fetchEnv" -}}
{{- with include "llavamed.storageEnv" .root }}
{{ . }}
{{- end }}
{{- with .root.Values.ray.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- with .group.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The environment of a Ray container. Arguments: those of its pod. */}}
{{- define "llavamed.rayEnv" -}}
{{- $values := .root.Values -}}
- name: LLAVAMED_CONFIG
  value: {{ include "llavamed.configDir" . }}/{{ $values.runConfig }}
{{ include "llavamed.trackingEnv" .root }}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
  value: {{ sub (int $values.ray.terminationGracePeriodSeconds) 15 | quote }}
- name: RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S
  value: {{ int $values.ray.workerStartTimeoutSeconds | quote }}
{{- if .head }}
- name: RAY_JOB_STOP_WAIT_TIME_S
  value: {{ int $values.ray.jobStopWaitSeconds | quote }}
{{- end }}
{{- if .serve }}
- name: LLAVAMED_SERVE_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ $values.serve.existingSecret | quote }}, key: token}
{{- end }}
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
- name: MLFLOW_DISABLE_TELEMETRY
  value: "true"
- name: HF_HUB_DISABLE_TELEMETRY
  value: "1"
{{- if $values.huggingface.offline }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- end }}
{{- include "llavamed.fetchEnv" . }}
{{- end }}
