/*
 * pg_hba.conf and pg_ident.conf, read and asked as the server does it. Runs on the front's main thread.
 */
#include "postgres.h"

#include "libpq/auth.h"
#include "libpq/hba.h"
#include "libpq/libpq-be.h"
#include "miscadmin.h"
#include "replication/walsender.h"
#include "utils/memutils.h"

#include "shim.h"

typedef struct
{
	int			method;			/* UserAuth, in our own numbers */
	int			line;
	int			client_certificate;	/* 0 off, 1 verify-ca, 2 verify-full */
	bool		certificate_by_dn;	/* clientname=DN */
	char		map[128];		/* pg_ident.conf map, or empty */
	char		text[512];		/* the line as it is written */
} PosternVerdict;

/* Whether this process has read pg_hba.conf and pg_ident.conf; until then nobody gets in by them. */
static bool hba_loaded = false;
static bool ident_loaded = false;

/*
 * The server's own verdict. host_name: the client's, confirmed, or null when it has none; no name is looked up here. replication: 0 none,
 * 1 physical, 2 of a database, as the startup packet asks for it.
 */
void
postern_hba(const char *database, const char *role, int family, const uint32 *address, bool tls, const char *host_name,
			int replication, PosternVerdict *out)
{
	Port		port;
	HbaLine    *line;

	memset(&port, 0, sizeof(port));
	memset(out, 0, sizeof(*out));
	if (!hba_loaded)
	{
		/* What hba.c still points to are the postmaster's lines, whose memory is no more. */
		out->method = 2;
		return;
	}
	port.sock = PGINVALID_SOCKET;
	port.database_name = unconstify(char *, database);
	port.user_name = unconstify(char *, role);
	port.ssl_in_use = tls;
	postern_set_address(&port.raddr, family, address, 0);
	port.remote_hostname = unconstify(char *, host_name);
	port.remote_hostname_resolv = host_name ? +1 : -1;
	/* The keyword "replication" in a line looks at these. */
	am_walsender = replication != 0;
	am_db_walsender = replication == 2;
	hba_getauthmethod(&port);
	am_walsender = am_db_walsender = false;
	line = port.hba;
	switch (line->auth_method)
	{
		case uaReject:
			out->method = 1;
			break;
		case uaImplicitReject:
			out->method = 2;
			break;
		case uaTrust:
			out->method = 3;
			break;
		case uaPassword:
			out->method = 4;
			break;
		case uaMD5:
			out->method = 5;
			break;
		case uaSCRAM:
			out->method = 6;
			break;
		case uaCert:
			out->method = 7;
			break;
		case uaPeer:
			out->method = 8;
			break;
		default:
			out->method = 0;
			strlcpy(out->text, hba_authname(line->auth_method), sizeof(out->text));
	}
	out->line = line->linenumber;
	out->client_certificate = line->clientcert;
	out->certificate_by_dn = line->clientcertname == clientCertDN;
	if (line->usermap)
		strlcpy(out->map, line->usermap, sizeof(out->map));
	if (out->method != 0 && line->rawline)
		strlcpy(out->text, line->rawline, sizeof(out->text));
}

/* pg_ident.conf: whether the map lets the outside name be the role. Logs as the server does when not. */
bool
postern_map_allows(const char *map, const char *role, const char *outside)
{
	if (map[0] && !ident_loaded)
		return false;
	return check_usermap(map[0] ? map : NULL, role, outside, false) == STATUS_OK;
}

/*
 * hba.c remembers the memory context of the lines that it read last and deletes it when it has read new ones. In a worker, what it
 * remembers is the postmaster's, which the start of every child process deletes without telling it. A deleted context of these sizes
 * is not freed but kept in a list, from which the next one of these sizes is taken (aset.c, context_freelists). So, before anything
 * else is made in this process, every place in that list is taken by a context of our own: what hba.c and ident's part of it then
 * delete are two of those, alive and empty. False when that was not so. Called once, first of all in a worker.
 */
#define FILLERS 48

static int
count_fillers(void)
{
	MemoryContext child;
	int			count = 0;

	for (child = PostmasterContext->firstchild; child; child = child->nextchild)
		if (strcmp(child->name, "postern filler") == 0)
			count++;
	return count;
}

bool
postern_first_load(bool *hba, bool *ident)
{
	int			i;

	PostmasterContext = AllocSetContextCreate(TopMemoryContext, "Postern HBA", ALLOCSET_DEFAULT_SIZES);
	for (i = 0; i < FILLERS; i++)
		(void) AllocSetContextCreate(PostmasterContext, "postern filler", ALLOCSET_SMALL_SIZES);
	*hba = hba_loaded = load_hba();
	if (*hba && count_fillers() != FILLERS - 1)
		return false;
	*ident = ident_loaded = load_ident();
	return !*ident || !*hba || count_fillers() == FILLERS - 2;
}

bool
postern_load_hba(void)
{
	bool		loaded = load_hba();

	hba_loaded |= loaded;
	return loaded;
}

bool
postern_load_ident(void)
{
	bool		loaded = load_ident();

	ident_loaded |= loaded;
	return loaded;
}
