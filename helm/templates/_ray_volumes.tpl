{{/* The mounts of a Ray container, and the volumes of its pod. Arguments: those of the pod. */}}
{{- define "llavamed.rayMounts" -}}
{{- $ray := .root.Values.ray -}}
- {name: ray-logs, mountPath: /tmp/ray}
- {name: shared-memory, mountPath: /dev/shm}
- {name: configs, mountPath: {{ include "llavamed.configDir" . }}, readOnly: true}
{{- if and .group.gpus $ray.weights.uri }}
- {name: weights, mountPath: {{ $ray.weights.mountPath }}, readOnly: true}
{{- end }}
{{- range $index, $claim := $ray.claims }}
- {name: claim-{{ $index }}, mountPath: {{ .mountPath }}, readOnly: {{ .readOnly | default false }}}
{{- end }}
{{- with $ray.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "llavamed.rayVolumes" -}}
{{- $ray := .root.Values.ray -}}
# KubeRay's own name for it, so that its autoscaler container shares it. Ray spills objects there, too.
- name: ray-logs
  emptyDir:
    sizeLimit: {{ .group.disk }}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: {{ .group.sharedMemory }}
- name: configs
  configMap:
    name: {{ include "llavamed.name" .root }}-configs
{{- if and .group.gpus $ray.weights.uri }}
- name: weights
  emptyDir:
    sizeLimit: {{ $ray.weights.size }}
{{- end }}
{{- range $index, $claim := $ray.claims }}
- name: claim-{{ $index }}
  persistentVolumeClaim:
    claimName: {{ .claim | quote }}
    readOnly: {{ .readOnly | default false }}
{{- end }}
{{- with $ray.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
Refuse volumes that Kubernetes would refuse, and mounts that it would refuse only once KubeRay makes the pods. Arguments:
those of the pod.
*/}}
{{- define "llavamed.checkVolumes" -}}
{{- $names := list -}}
{{- range include "llavamed.rayVolumes" . | fromYamlArray -}}
{{- if has .name $names }}{{ fail (printf "ray.extraVolumes: the name %s is taken; choose another" .name) }}{{ end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $paths := list -}}
{{- range include "llavamed.rayMounts" . | fromYamlArray -}}
{{- $path := clean .mountPath -}}
{{- if has $path $paths -}}
{{- fail (printf "ray: two volumes are mounted at %s; move that of extraVolumeMounts, claims or weights.mountPath" $path) -}}
{{- else if not (has .name $names) -}}
{{- fail (printf "ray.extraVolumeMounts: %s, mounted at %s, is none of the volumes %s; add it to ray.extraVolumes" .name $path (join ", " $names)) -}}
{{- end -}}
{{- $paths = append $paths $path -}}
{{- end -}}
{{- end }}
