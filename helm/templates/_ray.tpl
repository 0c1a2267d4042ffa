{{/* The directory where the run configs are mounted. */}}
{{- define "llavamed.configDir" -}}/etc/llavamed/configs{{- end }}

{{/* Not app.kubernetes.io/name: KubeRay's services select by its own value of it. Arguments: those of the pod. */}}
{{- define "llavamed.rayPodLabels" -}}
{{ include "llavamed.raySelector" .root }}
app.kubernetes.io/component: {{ .serve | ternary "serve" (ternary "ray-head" "ray-worker" .head) }}
{{- end }}

{{- define "llavamed.rayPodAnnotations" -}}
{{- if .serve -}}
# Another model changes the pods: KubeRay starts new ones next to the old ones, and then moves the requests.
llavamed/export: {{ .root.Values.serve.export | quote }}
{{- with .root.Values.serve.revision }}
llavamed/revision: {{ ternary . (toString (int64 .)) (kindIs "string" .) | quote }}
{{- end }}
{{- end }}
# Losing the head ends the job, losing a worker restarts it: no node is voluntarily removed under them.
cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
karpenter.sh/do-not-disrupt: "true"
{{- end }}

{{/*
The pod of the head and of the worker groups.
Arguments: root (the chart's top scope), group (its values: those of ray.head, ray.cpu or ray.a100), head (bool), and
serve (bool) for the pods of the service.
*/}}
{{- define "llavamed.rayPod" -}}
{{- include "llavamed.checkVolumes" . -}}
{{- $ray := .root.Values.ray -}}
{{- $image := include "llavamed.image" .root -}}
metadata:
  {{- $metadata := dict "root" .root "labels" (include "llavamed.rayPodLabels" .) "annotations" (include "llavamed.rayPodAnnotations" .) }}
  {{- include "llavamed.podMetadata" $metadata | nindent 2 }}
spec:
  {{- include "llavamed.podBase" .root | nindent 2 }}
  # Only the autoscaler, in the head's pod, talks to the Kubernetes API.
  automountServiceAccountToken: {{ and .head $ray.autoscaling.enabled (not .serve) }}
  terminationGracePeriodSeconds: {{ int $ray.terminationGracePeriodSeconds }}
  {{- with $ray.priorityClass }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- include "llavamed.placement" .group | nindent 2 }}
  {{- if and .group.gpus $ray.weights.uri }}
  initContainers:
    - name: fetch-weights
      image: {{ $image | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      securityContext:
        {{- include "llavamed.containerSecurity" "" | nindent 8 }}
      command: [python, -c]
      args:
        - {{ .root.Files.Get "scripts/fetch_weights.py" | quote }}
        - {{ $ray.weights.uri | quote }}
        - {{ $ray.weights.mountPath | quote }}
      resources:
        {{- include "llavamed.resources" (dict "cpu" 1 "memory" "2Gi") | nindent 8 }}
      env:
        {{- include "llavamed.fetchEnv" . | include "llavamed.env" | nindent 8 }}
      {{- with include "llavamed.storageEnvFrom" .root }}
      {{- . | nindent 6 }}
      {{- end }}
      volumeMounts:
        - {name: weights, mountPath: {{ $ray.weights.mountPath }}}
        {{- with $ray.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  {{- end }}
  containers:
    - name: {{ ternary "ray-head" "ray-worker" .head }}
      image: {{ $image | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      securityContext:
        {{- include "llavamed.containerSecurity" .group.capabilities | nindent 8 }}
      resources:
        {{- include "llavamed.rayResources" . | nindent 8 }}
      # Defaults are written out: one that Kubernetes adds to an item of a list counts as a change for Argo CD.
      ports:
        - {name: metrics, containerPort: 8080, protocol: TCP}
        {{- if .serve }}
        - {name: serve, containerPort: 8000, protocol: TCP}
        {{- end }}
        {{- if .head }}
        - {name: gcs, containerPort: 6379, protocol: TCP}
        - {name: dashboard, containerPort: 8265, protocol: TCP}
        - {name: client, containerPort: 10001, protocol: TCP}
        - {name: as-metrics, containerPort: 44217, protocol: TCP}
        - {name: dash-metrics, containerPort: 44227, protocol: TCP}
        {{- end }}
      env:
        {{- include "llavamed.rayEnv" . | include "llavamed.env" | nindent 8 }}
      {{- with include "llavamed.storageEnvFrom" .root }}
      {{- . | nindent 6 }}
      {{- end }}
      volumeMounts:
        {{- include "llavamed.rayMounts" . | nindent 8 }}
  volumes:
    {{- include "llavamed.rayVolumes" . | nindent 4 }}
{{- end }}
