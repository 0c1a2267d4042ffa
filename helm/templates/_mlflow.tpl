{{- define "llavamed.mlflowName" -}}{{ include "llavamed.name" . }}-mlflow{{- end }}

{{- define "llavamed.mlflowImage" -}}{{ .Values.mlflow.image | default (include "llavamed.image" .) }}{{- end }}

{{/* The claim's name; empty where neither the database nor the artifacts need one. */}}
{{- define "llavamed.mlflowClaim" -}}
{{- with .Values.mlflow -}}
{{- if not (and .database.existingSecret.name .artifacts.destination) -}}
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
{{- join "," $patterns -}}
{{- end }}

{{- define "llavamed.mlflowArtifacts" -}}
{{ .Values.mlflow.artifacts.destination | default "/mlflow/artifacts" }}
{{- end }}
