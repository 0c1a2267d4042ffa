{{/* Where the records are: what the server, its migration and its garbage collection have in common. */}}
{{- define "llavamed.mlflowStore" -}}
- name: MLFLOW_BACKEND_STORE_URI
  {{- with include "llavamed.databaseKey" . }}
  valueFrom:
    secretKeyRef:
      {{- . | nindent 6 }}
  {{- else }}
  value: sqlite:////mlflow/mlflow.db
  {{- end }}
- name: MLFLOW_DISABLE_TELEMETRY
  value: "true"
- name: HOME
  value: /tmp
{{- with include "llavamed.storageEnv" . }}
{{ . }}
{{- end }}
{{- with .Values.mlflow.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The server's own environment. */}}
{{- define "llavamed.mlflowEnv" -}}
# Background jobs serve features that training does not use.
- name: MLFLOW_SERVER_ENABLE_JOB_EXECUTION
  value: "false"
{{- with .Values.mlflow }}
{{- if hasPrefix "s3://" .artifacts.destination }}
# Clients transfer large files in parts, directly to and from the bucket. Not with Google's: there MLflow signs
# URLs with a private key, which a pod with a cloud role does not have. It forwards them in parts itself.
- name: MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD
  value: "true"
- name: MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD
  value: "true"
{{- end }}
{{- if .metrics }}
- name: POD_IP
  valueFrom:
    fieldRef: {fieldPath: status.podIP}
{{- end }}
{{- if .auth.existingSecret }}
- name: MLFLOW_AUTH_CONFIG_PATH
  value: /tmp/auth.ini
{{- range $variable, $key := dict "MLFLOW_AUTH_ADMIN_USERNAME" "username" "MLFLOW_AUTH_ADMIN_PASSWORD" "password" "MLFLOW_FLASK_SERVER_SECRET_KEY" "flask-secret-key" }}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef: {name: {{ $.Values.mlflow.auth.existingSecret | quote }}, key: {{ $key }}}
{{- end }}
{{- end }}
{{- end }}
{{ include "llavamed.mlflowStore" . }}
{{- end }}

{{/*
How a container of MLflow's image starts. Users and their rights are kept in the database of the runs; its URI, which
may hold a password, reaches MLflow's file of settings only inside the container.
*/}}
{{- define "llavamed.mlflowCommand" -}}
{{- if .Values.mlflow.auth.existingSecret -}}
command: [python, -c]
args:
  - {{ .Files.Get "scripts/serve_mlflow.py" | quote }}
{{- else -}}
command: [mlflow, server]
args:
{{- end }}
{{- end }}

{{/* What all containers of MLflow share. */}}
{{- define "llavamed.mlflowContainer" -}}
image: {{ include "llavamed.mlflowImage" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "llavamed.containerSecurity" "" | nindent 2 }}
  readOnlyRootFilesystem: true
resources:
  {{- include "llavamed.resources" (pick .Values.mlflow "cpu" "memory") | nindent 2 }}
volumeMounts:
  {{- include "llavamed.mlflowMounts" . | nindent 2 }}
{{- end }}

{{/* How a client finds the server and signs in. */}}
{{- define "llavamed.trackingEnv" -}}
- name: MLFLOW_TRACKING_URI
  value: {{ .Values.mlflow.trackingUri | default (printf "http://%s:5000" (include "llavamed.mlflowName" .)) | quote }}
{{- with .Values.mlflow.auth.existingSecret }}
- name: MLFLOW_TRACKING_USERNAME
  valueFrom:
    secretKeyRef: {name: {{ . | quote }}, key: username}
- name: MLFLOW_TRACKING_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ . | quote }}, key: password}
{{- end }}
{{- end }}
