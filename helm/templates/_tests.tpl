{{/* What the pods of `helm test` share; those of the last test stay, for their logs. */}}
{{- define "llavamed.testMetadata" -}}
{{- $labels := printf "%s\napp.kubernetes.io/component: test" (include "llavamed.labels" .) -}}
{{- $hook := toYaml (dict "helm.sh/hook" "test" "helm.sh/hook-delete-policy" "before-hook-creation") -}}
{{- include "llavamed.podMetadata" (dict "root" . "labels" $labels "annotations" $hook) -}}
{{- end }}

{{- define "llavamed.testPod" -}}
{{- include "llavamed.podBase" . }}
automountServiceAccountToken: false
restartPolicy: Never
{{- include "llavamed.placement" (set (deepCopy .Values.ray.head) "name" "head") }}
volumes:
  - name: ray
    emptyDir: {}
  - name: shared-memory
    emptyDir: {medium: Memory}
  - name: configs
    configMap:
      name: {{ include "llavamed.name" . }}-configs
{{- end }}

{{/* Arguments: root, cpu, memory. */}}
{{- define "llavamed.testContainer" -}}
image: {{ include "llavamed.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "llavamed.containerSecurity" "" | nindent 2 }}
resources:
  {{- include "llavamed.resources" . | nindent 2 }}
env:
  {{- include "llavamed.trackingEnv" .root | nindent 2 }}
  - name: RAY_ADDRESS
    value: local
  {{- if .root.Values.serve.enabled }}
  - name: LLAVAMED_SERVE_URL
    value: http://{{ include "llavamed.name" .root }}-serve-serve-svc:8000
  - name: LLAVAMED_SERVE_TOKEN
    valueFrom:
      secretKeyRef: {name: {{ .root.Values.serve.existingSecret | quote }}, key: token}
  {{- end }}
  - name: RAY_USAGE_STATS_ENABLED
    value: "0"
  - name: MLFLOW_DISABLE_TELEMETRY
    value: "true"
volumeMounts:
  - {name: ray, mountPath: /tmp/ray}
  - {name: shared-memory, mountPath: /dev/shm}
  - {name: configs, mountPath: {{ include "llavamed.configDir" .root }}, readOnly: true}
{{- end }}
