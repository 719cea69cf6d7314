/*
 * Who the client is, where the server shows it: pg_stat_activity, pg_stat_ssl, SYSTEM_USER. PostgreSQL threads only.
 */
#include "postgres.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>

#include "common/ip.h"
#include "libpq/hba.h"
#include "libpq/libpq-be.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "shim.h"

static char client_host[NI_MAXHOST];
static char client_port[NI_MAXSERV];

/* family 4, 6 or 0 for a Unix socket; the address in network order. */
void
postern_set_address(SockAddr *to, int family, const uint32 *address, int port)
{
	memset(to, 0, sizeof(*to));
	if (family == 4)
	{
		struct sockaddr_in *in = (struct sockaddr_in *) &to->addr;

		in->sin_family = AF_INET;
		in->sin_port = pg_hton16(port);
		memcpy(&in->sin_addr, address, 4);
		to->salen = sizeof(*in);
	}
	else if (family == 6)
	{
		struct sockaddr_in6 *in = (struct sockaddr_in6 *) &to->addr;

		in->sin6_family = AF_INET6;
		in->sin6_port = pg_hton16(port);
		memcpy(&in->sin6_addr, address, 16);
		to->salen = sizeof(*in);
	}
	else
	{
		to->addr.ss_family = AF_UNIX;
		to->salen = sizeof(sa_family_t);
	}
}

/* The client and the front's end of its connection; application_name is a setting of its own. */
void
postern_set_client(int family, const uint32 *address, int port, const uint32 *local, int local_port)
{
	SockAddr   *remote = &MyProcPort->raddr;

	postern_set_address(remote, family, address, port);
	postern_set_address(&MyProcPort->laddr, family, local, local_port);
	client_host[0] = client_port[0] = '\0';
	/* What getnameinfo() with NI_NUMERICHOST would say, only faster; an address of the front's has no scope. */
	if (family == 0)
		strlcpy(client_host, "[local]", sizeof(client_host));
	else if (inet_ntop(family == 4 ? AF_INET : AF_INET6, address, client_host, sizeof(client_host)))
		pg_ltoa(port, client_port);
	MyProcPort->remote_host = client_host;
	MyProcPort->remote_port = client_port;
	MyProcPort->remote_hostname = NULL;
	if (MyBEEntry)
	{
		PGSTAT_BEGIN_WRITE_ACTIVITY(MyBEEntry);
		memcpy(&MyBEEntry->st_clientaddr, remote, sizeof(MyBEEntry->st_clientaddr));
		PGSTAT_END_WRITE_ACTIVITY(MyBEEntry);
	}
}

static char *
to_server(const char *text)
{
	const char *byte;

	for (byte = text; POSTERN_CONVERTS_NAMES && *byte; byte++)
		if (IS_HIGHBIT_SET(*byte))
			return pg_any_to_server(text, strlen(text), PG_UTF8);
	return unconstify(char *, text);
}

/*
 * pg_stat_ssl as pgstat_bestart() fills it for a session of its own; null versions are no TLS. Names come in UTF-8. The Port says
 * nothing of it: what it has would be read from and written to by OpenSSL.
 */
void
postern_set_tls(int bits, const char *version, const char *cipher, const char *subject, const char *serial,
				const char *issuer)
{
	volatile PgBackendStatus *entry = MyBEEntry;
	PgBackendSSLStatus status;

	/* A server that was built without TLS has no place for it. */
	if (entry == NULL || entry->st_sslstatus == NULL)
		return;
	memset(&status, 0, sizeof(status));
	if (version)
	{
		/* Before the entry is touched: it may raise an error. What is ASCII needs no conversion, which wants a transaction. */
		char	   *dn = to_server(subject);
		char	   *issuer_dn = to_server(issuer);

		status.ssl_bits = bits;
		strlcpy(status.ssl_version, version, NAMEDATALEN);
		strlcpy(status.ssl_cipher, cipher, NAMEDATALEN);
		strlcpy(status.ssl_client_dn, dn, NAMEDATALEN);
		strlcpy(status.ssl_client_serial, serial, NAMEDATALEN);
		strlcpy(status.ssl_issuer_dn, issuer_dn, NAMEDATALEN);
	}
	PGSTAT_BEGIN_WRITE_ACTIVITY(entry);
	entry->st_ssl = version != NULL;
	memcpy(entry->st_sslstatus, &status, sizeof(status));
	PGSTAT_END_WRITE_ACTIVITY(entry);
}

/*
 * SYSTEM_USER, from 16 on, also in parallel workers of the session. The server makes its text once a session and has no way to change
 * it, so the first text is as long as any may be, and others are written in its place; in the place of none, an empty one.
 */
void
postern_set_identity(int method, const char *identity)
{
#ifdef POSTERN_HAS_SYSTEM_USER
#define LONGEST_IDENTITY 2048
	static const UserAuth authenticated[] = {uaTrust, uaPassword, uaMD5, uaSCRAM, uaCert, uaPeer};
	static char *text = NULL;
	static char *name = NULL;

	if (method <= 0 || method >= lengthof(authenticated))
	{
		MyClientConnectionInfo.authn_id = NULL;
		if (text)
			text[0] = '\0';
		return;
	}
	if (text == NULL)
	{
		char	   *room = palloc(LONGEST_IDENTITY);

		name = MemoryContextAllocZero(TopMemoryContext, LONGEST_IDENTITY);
		memset(room, ' ', LONGEST_IDENTITY - 1);
		room[LONGEST_IDENTITY - 1] = '\0';
		InitializeSystemUser(room, "");
		pfree(room);
		text = unconstify(char *, GetSystemUser());
	}
	/* A password has shown the role itself, under the name that it was asked for by. */
	strlcpy(name, identity[0] ? identity : MyProcPort->user_name, LONGEST_IDENTITY);
	MyClientConnectionInfo.authn_id = name;
	MyClientConnectionInfo.auth_method = authenticated[method];
	snprintf(text, LONGEST_IDENTITY, "%s:%s", hba_authname(authenticated[method]), name);
#endif
}
