{{/* The directory where the run configs are mounted. */}}
{{- define "llavamed.configDir" -}}/etc/llavamed/configs{{- end }}

{{/*
The pod of the head and of both worker groups.
Arguments: root (the chart's top scope), group (its values: cpu, memory, gpus, nodeSelector, tolerations),
head (bool), nodeLabel (key and value, optional).
*/}}
{{- define "llavamed.rayPod" -}}
{{- $ray := .root.Values.ray -}}
metadata:
  labels:
    # Not app.kubernetes.io/name: KubeRay's services select by its own value of it.
    app.kubernetes.io/part-of: llavamed
    app.kubernetes.io/instance: {{ include "llavamed.name" .root }}
  annotations:
    # Losing the head ends the job, losing a worker restarts it: no node is removed under them by choice.
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    karpenter.sh/do-not-disrupt: "true"
spec:
  {{- include "llavamed.podBase" .root | nindent 2 }}
  # Only the autoscaler, in the head's pod, talks to the Kubernetes API.
  automountServiceAccountToken: {{ and .head $ray.autoscaling.enabled }}
  terminationGracePeriodSeconds: {{ int $ray.terminationGracePeriodSeconds }}
  {{- with .group.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $selector := dict }}
  {{- with .nodeLabel }}
  {{- $selector = dict .key .value }}
  {{- end }}
  {{- with merge $selector .group.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ ternary "ray-head" "ray-worker" .head }}
      image: {{ include "llavamed.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      securityContext:
        {{- include "llavamed.containerSecurity" . | nindent 8 }}
      resources:
        {{- include "llavamed.resources" .group | nindent 8 }}
      ports:
        - {name: metrics, containerPort: 8080}
        {{- if .head }}
        - {name: gcs, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        - {name: as-metrics, containerPort: 44217}
        - {name: dash-metrics, containerPort: 44227}
        {{- end }}
      env:
        {{- include "llavamed.rayEnv" . | nindent 8 }}
      {{- with include "llavamed.storageEnvFrom" .root }}
      {{- . | nindent 6 }}
      {{- end }}
      volumeMounts:
        - {name: ray-logs, mountPath: /tmp/ray}
        - {name: configs, mountPath: {{ include "llavamed.configDir" . }}, readOnly: true}
  volumes:
    # KubeRay's own name for it, so that its autoscaler container shares it.
    - name: ray-logs
      emptyDir: {}
    - name: configs
      configMap:
        name: {{ include "llavamed.name" .root }}-configs
{{- end }}

{{- define "llavamed.rayEnv" -}}
{{- $values := .root.Values -}}
- name: LLAVAMED_CONFIG
  value: {{ include "llavamed.configDir" . }}/{{ $values.runConfig }}
- name: MLFLOW_TRACKING_URI
  value: http://{{ include "llavamed.mlflowName" .root }}:5000
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
{{- with include "llavamed.storageEnv" .root }}
{{ . }}
{{- end }}
{{- end }}
