{{- define "llavamed.mlflowName" -}}{{ include "llavamed.name" . }}-mlflow{{- end }}

{{- define "llavamed.mlflowImage" -}}{{ .Values.mlflow.image | default (include "llavamed.image" .) }}{{- end }}

{{- define "llavamed.postgresName" -}}{{ include "llavamed.name" . }}-postgres{{- end }}

{{/* The secretKeyRef of PostgreSQL's URI; empty for SQLite. */}}
{{- define "llavamed.databaseKey" -}}
{{- with .Values.mlflow.database -}}
{{- if $.Values.mlflow.trackingUri -}}
{{- if or .bundled.enabled .existingSecret.name $.Values.mlflow.gc.enabled -}}
{{- fail (printf "mlflow.trackingUri=%s: the chart creates no MLflow server, so it has no database and no garbage to collect; take mlflow.database and mlflow.gc away, or set mlflow.trackingUri=\"\"" $.Values.mlflow.trackingUri) -}}
{{- end -}}
{{- else if and .bundled.enabled .existingSecret.name -}}
{{- fail (printf "mlflow.database.bundled.enabled=true: excludes a database of your own; set it to false, or take mlflow.database.existingSecret.name=%s away" .existingSecret.name) -}}
{{- else if .bundled.enabled -}}
{{- dict "name" (include "llavamed.postgresName" $) "key" "uri" | toYaml -}}
{{- else if .existingSecret.name -}}
{{- toYaml .existingSecret -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A volume claim that outlives the release. Arguments: root, component, name, size. */}}
{{- define "llavamed.claim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ .name }}
  labels:
    {{- include "llavamed.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
  annotations:
    # Uninstalling keeps the history of the runs; the next installation of this release finds it again.
    helm.sh/resource-policy: keep
spec:
  accessModes: [ReadWriteOnce]
  {{- with .root.Values.mlflow.persistence.storageClass }}
  storageClassName: {{ . | quote }}
  {{- end }}
  resources:
    requests:
      storage: {{ .size }}
{{- end }}

{{/* The server's claim; empty if neither the database nor the artifacts need one. */}}
{{- define "llavamed.mlflowClaim" -}}
{{- with .Values.mlflow -}}
{{- if not (or .trackingUri (and (include "llavamed.databaseKey" $) .artifacts.destination)) -}}
{{ include "llavamed.mlflowName" $ }}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
Host headers the server accepts: its service's names and port-forwards, and its pod's address for Prometheus. The
flag replaces MLflow's own list, which knows no service name but takes `10.*`, and with it 10.example.com: no pattern
here ends in a wildcard but for the port.
*/}}
{{- define "llavamed.mlflowAllowedHosts" -}}
{{- $service := include "llavamed.mlflowName" . -}}
{{- $local := printf "%s.%s" $service .Release.Namespace -}}
{{- $hosts := list "localhost" "127.0.0.1" $service $local (printf "%s.svc" $local) (printf "%s.svc.cluster.local" $local) -}}
{{- if .Values.mlflow.metrics }}{{ $hosts = append $hosts "$(POD_IP)" }}{{ end -}}
{{- $patterns := list -}}
{{- range concat $hosts .Values.mlflow.extraAllowedHosts -}}
{{- $patterns = concat $patterns (list . (printf "%s:*" .)) -}}
{{- end -}}
{{- /* Brackets are a class of characters in a pattern with a wildcard, so this one has none. */}}
{{- if and .Values.mlflow.metrics (eq .Values.mlflow.host "::") }}{{ $patterns = append $patterns "[$(POD_IP)]:5000" }}{{ end -}}
{{- join "," $patterns -}}
{{- end }}

{{/* The nodes of the server and of what belongs to it. */}}
{{- define "llavamed.mlflowPlacement" -}}
{{- include "llavamed.placement" (dict "name" "mlflow" "nodeSelector" .Values.mlflow.nodeSelector "tolerations" .Values.mlflow.tolerations) -}}
{{- end }}

{{/* The volumes of the server and of its garbage collection. */}}
{{- define "llavamed.mlflowVolumes" -}}
- name: tmp
  emptyDir: {}
{{- with include "llavamed.mlflowClaim" . }}
- name: data
  persistentVolumeClaim:
    claimName: {{ . }}
{{- end }}
{{- with .Values.mlflow.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "llavamed.mlflowMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if include "llavamed.mlflowClaim" . }}
- {name: data, mountPath: /mlflow}
{{- end }}
{{- with .Values.mlflow.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "llavamed.mlflowArtifacts" -}}
{{ .Values.mlflow.artifacts.destination | default "/mlflow/artifacts" }}
{{- end }}
