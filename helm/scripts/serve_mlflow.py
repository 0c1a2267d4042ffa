"""Start an MLflow server that asks for passwords; the arguments are those of `mlflow server`."""

import os
import sys
from configparser import ConfigParser

settings = ConfigParser(interpolation=None)
settings["mlflow"] = {
    "database_uri": os.environ["MLFLOW_BACKEND_STORE_URI"].replace("%", "%%"),
    "default_permission": "EDIT",
    "admin_username": os.environ["MLFLOW_AUTH_ADMIN_USERNAME"],
    "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
}
path = os.environ["MLFLOW_AUTH_CONFIG_PATH"]
with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
    settings.write(file)
os.execvp("mlflow", ["mlflow", "server", "--app-name=basic-auth", *sys.argv[1:]])
