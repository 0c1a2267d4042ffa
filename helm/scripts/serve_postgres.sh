# Make the database at the first start, give its user the password of the Secret at every start, and serve it.
set -eu

# PostgreSQL's programs ask for the name of their user, and the image knows none of our number.
echo "mlflow:x:$(id -u):$(id -g)::/tmp:/bin/sh" >/tmp/passwd
export LD_PRELOAD=libnss_wrapper.so NSS_WRAPPER_PASSWD=/tmp/passwd NSS_WRAPPER_GROUP=/etc/group

if ! [ -e "$PGDATA" ]; then
    rm -rf "$PGDATA.partial"
    initdb --pgdata="$PGDATA.partial" --username=mlflow --encoding=UTF8 --auth-local=reject --auth-host=scram-sha-256
    echo "host all all all scram-sha-256" >>"$PGDATA.partial/pg_hba.conf"
    # A pod that is killed before here makes it anew.
    mv "$PGDATA.partial" "$PGDATA"
fi
# A password is never in the arguments of a process, which others may list.
printf "ALTER ROLE mlflow PASSWORD '%s';\n" "$PASSWORD" | postgres --single postgres >/dev/null

unset LD_PRELOAD
exec postgres -c listen_addresses="*" -c unix_socket_directories=/tmp
