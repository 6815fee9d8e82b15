#!/bin/sh
# Put Postfix, Exim, OpenSMTPD (Debian) and smtp-server, Haraka (npm) into a folder, for tests/system/mail. Nothing is
# installed, and no service is started: the packages are only unpacked. Run it as root, who makes the users that Exim and
# OpenSMTPD are compiled for. What is there is not fetched again.
set -eu
folder=${1:-${MAIL_SERVERS:-$HOME/.cache/flask-taskworker/mail-servers}}
mkdir -p "$folder/debs" "$folder/root" "$folder/npm"
if [ ! -x "$folder/root/usr/sbin/smtpd" ]; then
    cd "$folder/debs"
    apt-get update -q
    apt-get download -q postfix exim4-daemon-light opensmtpd libidn12 libevent-2.1-7 libicu72 libdb5.3 libgnutls-dane0 || \
        apt-get download -q postfix exim4-daemon-light opensmtpd libidn12
    for package in *.deb; do dpkg -x "$package" "$folder/root"; done
    chmod u-s "$folder/root/usr/sbin/exim4"
fi
for user in Debian-exim opensmtpd opensmtpq; do
    id "$user" >/dev/null 2>&1 || useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
done
mkdir -p /var/lib/opensmtpd/empty /var/spool/smtpd
chmod 755 /var/lib/opensmtpd /var/lib/opensmtpd/empty
chmod 711 /var/spool/smtpd
if [ ! -d "$folder/npm/node_modules/Haraka" ]; then
    cd "$folder/npm"
    [ -f package.json ] || npm init -y >/dev/null
    npm install --no-audit --no-fund smtp-server@3 Haraka@3
fi
