-- Change streams: what is defined, where each stream is, and what SQL can do with them. Between SQL and Postern texts go as UTF-8,
-- whatever the database's encoding. The definitions go into a dump; whether a stream runs, and where it is, does not: a copy of the
-- database must not deliver to the sinks of the original.

CREATE TABLE postern.source_definitions (
    name text PRIMARY KEY CHECK (name <> '' AND octet_length(convert_to(name, 'UTF8')) <= 63),
    kind text NOT NULL,
    options jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT source_options CHECK (postern.check_source(convert_to(kind, 'UTF8'), convert_to(options::text, 'UTF8')))
);

CREATE TABLE postern.sink_definitions (
    name text PRIMARY KEY CHECK (name <> '' AND octet_length(convert_to(name, 'UTF8')) <= 63),
    kind text NOT NULL,
    options jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT sink_options CHECK (postern.check_sink(convert_to(kind, 'UTF8'), convert_to(options::text, 'UTF8')))
);

CREATE TABLE postern.stream_definitions (
    name text PRIMARY KEY CHECK (name <> '' AND octet_length(convert_to(name, 'UTF8')) <= 63),
    source text NOT NULL REFERENCES postern.source_definitions,
    sink text NOT NULL REFERENCES postern.sink_definitions,
    UNIQUE (source, sink)
);

-- started counts what makes its worker begin anew.
CREATE TABLE postern.stream_states (
    stream text PRIMARY KEY REFERENCES postern.stream_definitions ON DELETE CASCADE,
    state text NOT NULL CHECK (state IN ('running', 'paused', 'stopped')),
    started bigint NOT NULL DEFAULT 0
);

-- The last event that is delivered: the end of its transaction's commit record and its number in the transaction, null when the whole
-- transaction is. Everything that was committed before delivered_lsn is. rewound counts what an operator has set.
CREATE TABLE postern.stream_positions (
    stream text PRIMARY KEY REFERENCES postern.stream_definitions ON DELETE CASCADE,
    commit_lsn pg_lsn NOT NULL,
    ordinal bigint,
    delivered_lsn pg_lsn NOT NULL,
    rewound bigint NOT NULL DEFAULT 0,
    recorded_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- What Postern has made for a source, what its slot may have confirmed (it is written down before), how often a stream of it was rewound.
CREATE TABLE postern.source_states (
    source text PRIMARY KEY REFERENCES postern.source_definitions ON DELETE CASCADE,
    slot name NOT NULL UNIQUE,
    made_slot boolean NOT NULL,
    begins pg_lsn NOT NULL,
    snapshot_done boolean NOT NULL DEFAULT false,
    gap text,
    confirmed pg_lsn,
    rewound bigint NOT NULL DEFAULT 0
);

-- Publications that Postern has made, as they were then: they go with the source.
CREATE TABLE postern.made_publications (
    publication oid PRIMARY KEY,
    owner oid NOT NULL,
    source text NOT NULL REFERENCES postern.source_definitions ON DELETE CASCADE
);

-- The tables of a source's snapshot: lsn is where that table's changes begin. Of one that was interrupted that is before its first row
-- was read: who has seen that row must hear that it was deleted.
CREATE TABLE postern.snapshot_tables (
    source text NOT NULL REFERENCES postern.source_definitions ON DELETE CASCADE,
    relation oid NOT NULL,
    lsn pg_lsn NOT NULL,
    delivered boolean NOT NULL,
    PRIMARY KEY (source, relation)
);

-- What came from a source and was no event. It does not come again: whoever has mended it deletes it here.
CREATE TABLE postern.rejected_messages (
    source text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    message_offset bigint NOT NULL,
    key bytea,
    payload bytea,
    reason text NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT now()
);

SELECT pg_catalog.pg_extension_config_dump('postern.source_definitions', '');
SELECT pg_catalog.pg_extension_config_dump('postern.sink_definitions', '');
SELECT pg_catalog.pg_extension_config_dump('postern.stream_definitions', '');

CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON postern.source_definitions
    FOR EACH STATEMENT EXECUTE FUNCTION postern.definitions_changed();
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON postern.sink_definitions
    FOR EACH STATEMENT EXECUTE FUNCTION postern.definitions_changed();
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON postern.stream_definitions
    FOR EACH STATEMENT EXECUTE FUNCTION postern.definitions_changed();
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON postern.stream_states
    FOR EACH STATEMENT EXECUTE FUNCTION postern.definitions_changed();

-- Whether there is a source, a sink or a stream of that name.
CREATE FUNCTION postern.is_defined(what text, name text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
RETURN CASE is_defined.what
    WHEN 'source' THEN EXISTS (SELECT FROM postern.source_definitions d WHERE d.name = is_defined.name)
    WHEN 'sink' THEN EXISTS (SELECT FROM postern.sink_definitions d WHERE d.name = is_defined.name)
    ELSE EXISTS (SELECT FROM postern.stream_definitions d WHERE d.name = is_defined.name)
END;

-- Raise an error unless: something was given; a name can be that of something new; there is something of that name; no stream has it;
-- options are such.
CREATE FUNCTION postern.expect_given(what text, given boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT given THEN
        RAISE null_value_not_allowed USING MESSAGE = format('%s must not be null', what);
    END IF;
END $$;

CREATE FUNCTION postern.expect_new(what text, name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    length integer;
BEGIN
    PERFORM postern.expect_given(format('the name of a %s', what), name IS NOT NULL);
    BEGIN
        length := octet_length(convert_to(name, 'UTF8'));
    EXCEPTION WHEN data_exception OR undefined_function THEN
        RAISE character_not_in_repertoire USING
            MESSAGE = format('the name of a %s must be UTF-8, or what can be converted to it', what);
    END;
    IF length NOT BETWEEN 1 AND 63 THEN
        RAISE invalid_name USING MESSAGE = format('the name of a %s must have 1 to 63 bytes in UTF-8, and not %s', what, length);
    END IF;
    IF postern.is_defined(what, name) THEN
        RAISE duplicate_object USING MESSAGE = format('%s "%s" already exists', what, name);
    END IF;
END $$;

CREATE FUNCTION postern.expect_defined(what text, name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM postern.expect_given(format('the name of a %s', what), name IS NOT NULL);
    IF NOT postern.is_defined(what, name) THEN
        RAISE undefined_object USING MESSAGE = format('%s "%s" does not exist', what, name);
    END IF;
END $$;

CREATE FUNCTION postern.expect_unused(what text, name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    its text;
BEGIN
    SELECT string_agg(format('"%s"', d.name), ', ' ORDER BY d.name) INTO its
    FROM postern.stream_definitions d
    WHERE expect_unused.name = CASE what WHEN 'source' THEN d.source ELSE d.sink END;
    IF its IS NOT NULL THEN
        RAISE dependent_objects_still_exist USING
            MESSAGE = format('%s "%s" %s', what, name, CASE what WHEN 'source' THEN 'feeds streams' ELSE 'is fed by streams' END),
            DETAIL = format('Streams %s use it.', its),
            HINT = 'Drop them first, by postern.drop_stream().';
    END IF;
END $$;

CREATE FUNCTION postern.expect_options(options jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM postern.expect_given('argument "options"', options IS NOT NULL);
    IF jsonb_typeof(options) <> 'object' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'options must be a JSON object';
    END IF;
    BEGIN
        PERFORM convert_to(options::text, 'UTF8');
    EXCEPTION WHEN data_exception OR undefined_function THEN
        RAISE character_not_in_repertoire USING MESSAGE = 'options must be UTF-8, or what can be converted to it';
    END;
END $$;

-- Options as everybody may see them who may see the views.
CREATE FUNCTION postern.without_secrets(options jsonb) RETURNS jsonb
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
RETURN convert_from(postern.hide_secrets(convert_to(options::text, 'UTF8')), 'UTF8')::jsonb;

CREATE FUNCTION postern.create_source(name text, kind text DEFAULT 'postgres', options jsonb DEFAULT '{}') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM postern.expect_new('source', name);
    PERFORM postern.expect_given('argument "kind"', kind IS NOT NULL);
    PERFORM postern.expect_options(options);
    INSERT INTO postern.source_definitions (name, kind, options)
    VALUES (create_source.name, create_source.kind, create_source.options);
END $$;

CREATE FUNCTION postern.create_sink(name text, kind text, options jsonb DEFAULT '{}') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM postern.expect_new('sink', name);
    PERFORM postern.expect_given('argument "kind"', kind IS NOT NULL);
    PERFORM postern.expect_options(options);
    INSERT INTO postern.sink_definitions (name, kind, options)
    VALUES (create_sink.name, create_sink.kind, create_sink.options);
END $$;

CREATE FUNCTION postern.create_stream(name text, source text, sink text, start boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM postern.expect_new('stream', name);
    PERFORM postern.expect_defined('source', source);
    PERFORM postern.expect_defined('sink', sink);
    PERFORM postern.expect_given('argument "start"', start IS NOT NULL);
    IF EXISTS (SELECT FROM postern.stream_definitions d
               WHERE (d.source, d.sink) = (create_stream.source, create_stream.sink)) THEN
        RAISE duplicate_object USING MESSAGE = format('source "%s" feeds sink "%s" already', source, sink);
    END IF;
    INSERT INTO postern.stream_definitions (name, source, sink)
    VALUES (create_stream.name, create_stream.source, create_stream.sink);
    INSERT INTO postern.stream_states (stream, state)
    VALUES (create_stream.name, CASE WHEN start THEN 'running' ELSE 'stopped' END);
END $$;

CREATE FUNCTION postern.alter_source(name text, options jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM postern.expect_defined('source', name);
    PERFORM postern.expect_options(options);
    UPDATE postern.source_definitions d SET options = jsonb_strip_nulls(d.options || alter_source.options)
    WHERE d.name = alter_source.name;
END $$;

CREATE FUNCTION postern.alter_sink(name text, options jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM postern.expect_defined('sink', name);
    PERFORM postern.expect_options(options);
    UPDATE postern.sink_definitions d SET options = jsonb_strip_nulls(d.options || alter_sink.options)
    WHERE d.name = alter_sink.name;
END $$;

CREATE FUNCTION postern.alter_stream(name text, sink text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM postern.expect_defined('stream', name);
    PERFORM postern.expect_defined('sink', sink);
    UPDATE postern.stream_definitions d SET sink = alter_stream.sink WHERE d.name = alter_stream.name;
END $$;

CREATE FUNCTION postern.drop_source(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    made record;
BEGIN
    PERFORM postern.expect_defined('source', name);
    -- Its worker may be making a publication for it: what is looked for below is then there, or never made.
    PERFORM FROM postern.source_definitions d WHERE d.name = drop_source.name FOR UPDATE;
    PERFORM postern.expect_unused('source', name);
    FOR made IN
        SELECT p.pubname, p.pubowner = m.owner AS is_ours,
               (SELECT min(o.name) FROM postern.source_definitions o
                WHERE o.name <> m.source
                    AND p.pubname = coalesce(nullif(o.options ->> 'publication', ''), 'postern_' || o.name)) AS other
        FROM postern.made_publications m JOIN pg_publication p ON p.oid = m.publication
        WHERE m.source = drop_source.name
    LOOP
        IF made.is_ours AND made.other IS NULL THEN
            EXECUTE format('DROP PUBLICATION %I', made.pubname);
        ELSIF made.is_ours THEN
            RAISE NOTICE 'publication "%" stays: source "%" has it, too', made.pubname, made.other;
        ELSE
            RAISE NOTICE 'publication "%" stays: it has another owner by now', made.pubname;
        END IF;
    END LOOP;
    DELETE FROM postern.source_definitions d WHERE d.name = drop_source.name;
END $$;

CREATE FUNCTION postern.drop_sink(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM postern.expect_defined('sink', name);
    PERFORM postern.expect_unused('sink', name);
    DELETE FROM postern.sink_definitions d WHERE d.name = drop_sink.name;
END $$;

CREATE FUNCTION postern.drop_stream(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM postern.expect_defined('stream', name);
    DELETE FROM postern.stream_definitions d WHERE d.name = drop_stream.name;
END $$;

-- For the nine below: which names there are, what they shall do, how many streams that is.
CREATE FUNCTION postern.switch_streams(what text, name text, state text) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    switched integer;
BEGIN
    PERFORM postern.expect_defined(what, name);
    INSERT INTO postern.stream_states AS s (stream, state)
    SELECT d.name, switch_streams.state FROM postern.stream_definitions d
    WHERE switch_streams.name = CASE what WHEN 'source' THEN d.source WHEN 'sink' THEN d.sink ELSE d.name END
    ON CONFLICT (stream) DO UPDATE SET state = excluded.state, started = s.started + 1;
    GET DIAGNOSTICS switched = ROW_COUNT;
    RETURN switched;
END $$;

CREATE FUNCTION postern.start_source(name text) RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN postern.switch_streams('source', name, 'running');
CREATE FUNCTION postern.pause_source(name text) RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN postern.switch_streams('source', name, 'paused');
CREATE FUNCTION postern.stop_source(name text) RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN postern.switch_streams('source', name, 'stopped');
CREATE FUNCTION postern.start_sink(name text) RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN postern.switch_streams('sink', name, 'running');
CREATE FUNCTION postern.pause_sink(name text) RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN postern.switch_streams('sink', name, 'paused');
CREATE FUNCTION postern.stop_sink(name text) RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN postern.switch_streams('sink', name, 'stopped');
CREATE FUNCTION postern.start_stream(name text) RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN postern.switch_streams('stream', name, 'running');
CREATE FUNCTION postern.pause_stream(name text) RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN postern.switch_streams('stream', name, 'paused');
CREATE FUNCTION postern.stop_stream(name text) RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN postern.switch_streams('stream', name, 'stopped');

CREATE FUNCTION postern.rewind_stream(name text, lsn pg_lsn) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    its_slot name;
    kept pg_lsn;
    reached pg_lsn;
BEGIN
    PERFORM postern.expect_defined('stream', name);
    PERFORM postern.expect_given('argument "lsn"', lsn IS NOT NULL);
    IF EXISTS (SELECT FROM postern.stream_definitions d JOIN postern.source_definitions o ON o.name = d.source
               WHERE d.name = rewind_stream.name AND o.kind <> 'postgres') THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = format('stream "%s" cannot be rewound: its source is not this server''s WAL', name);
    END IF;
    -- Locked before it is looked at: until this transaction ends, nothing more is confirmed.
    UPDATE postern.source_states s SET rewound = s.rewound + 1
    FROM postern.stream_definitions d
    WHERE d.name = rewind_stream.name AND s.source = d.source
    RETURNING s.slot, s.confirmed INTO its_slot, kept;
    SELECT p.commit_lsn INTO reached FROM postern.stream_positions p WHERE p.stream = rewind_stream.name;
    IF its_slot IS NULL OR reached IS NULL THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = format('stream "%s" has not delivered anything yet', name);
    END IF;
    SELECT greatest(kept, r.confirmed_flush_lsn) INTO kept
    FROM pg_replication_slots r
    WHERE r.slot_name = its_slot AND r.database = current_database() AND r.wal_status IS DISTINCT FROM 'lost';
    IF NOT FOUND THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = format('stream "%s" cannot go back to %s', name, lsn),
            DETAIL = format('Replication slot "%s" of its source is gone or invalidated, and the changes that it kept with it.', its_slot);
    END IF;
    IF lsn < kept THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('stream "%s" cannot go back to %s', name, lsn),
            DETAIL = format('Changes are kept from %s on; what was before is gone.', kept),
            HINT = 'The option "retain" of the source keeps more.';
    END IF;
    IF lsn > reached THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('stream "%s" is at %s and cannot be rewound to %s', name, reached, lsn);
    END IF;
    UPDATE postern.stream_positions p
    SET commit_lsn = lsn, ordinal = NULL, delivered_lsn = lsn, rewound = rewound + 1, recorded_at = now()
    WHERE p.stream = rewind_stream.name;
    UPDATE postern.stream_states s SET started = started + 1 WHERE s.stream = rewind_stream.name;
END $$;

CREATE FUNCTION postern.rewind_source(name text, lsn pg_lsn) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rewound integer := 0;
    its text;
BEGIN
    PERFORM postern.expect_defined('source', name);
    PERFORM postern.expect_given('argument "lsn"', lsn IS NOT NULL);
    FOR its IN SELECT d.name FROM postern.stream_definitions d WHERE d.source = rewind_source.name ORDER BY d.name LOOP
        PERFORM postern.rewind_stream(its, lsn);
        rewound := rewound + 1;
    END LOOP;
    RETURN rewound;
END $$;

CREATE VIEW postern.sources AS
SELECT d.name, d.kind,
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'standby' WHEN r.state IS NOT NULL THEN r.state
            WHEN EXISTS (SELECT FROM postern.stream_definitions t JOIN postern.stream_states w ON w.stream = t.name
                         WHERE t.source = d.name AND w.state = 'running') THEN 'waiting'
            ELSE 'stopped' END AS state,
       r.error AS last_error, to_timestamp(r.error_at) AS last_error_at,
       s.slot, s.made_slot,
       r.worker_pid, to_timestamp(r.since) AS worker_started_at, coalesce(r.starts, 0) AS worker_starts, coalesce(r.errors, 0) AS errors,
       r.received_lsn::pg_lsn AS received_lsn,
       l.confirmed_flush_lsn AS confirmed_lsn,
       CASE WHEN NOT pg_catalog.pg_is_in_recovery()
            THEN (pg_catalog.pg_current_wal_lsn() - l.restart_lsn)::bigint END AS retained_wal,
       l.wal_status,
       r.buffered, r.buffered_most,
       s.gap,
       postern.without_secrets(d.options) AS options
FROM postern.source_definitions d
LEFT JOIN postern.source_states s ON s.source = d.name
LEFT JOIN postern.running_sources() r ON r.name = pg_catalog.convert_to(d.name, 'UTF8')
LEFT JOIN pg_catalog.pg_replication_slots l ON l.slot_name = s.slot;

CREATE VIEW postern.streams AS
SELECT d.name, d.source, d.sink,
       CASE WHEN coalesce(w.state, 'stopped') <> 'running' THEN coalesce(w.state, 'stopped')
            WHEN pg_catalog.pg_is_in_recovery() THEN 'standby'
            WHEN s.state IN ('failed', 'blocked', 'starting', 'snapshot') THEN s.state
            ELSE coalesce(r.state, 'waiting') END AS state,
       -- The later of the two.
       CASE WHEN s.last_error_at > coalesce(to_timestamp(r.error_at), '-infinity') THEN s.last_error ELSE r.error END AS last_error,
       greatest(s.last_error_at, to_timestamp(r.error_at)) AS last_error_at,
       coalesce(r.events, 0) AS events, coalesce(r.bytes, 0) AS bytes, coalesce(r.skipped, 0) AS skipped, coalesce(r.errors, 0) AS errors,
       s.received_lsn,
       greatest(r.delivered_lsn::pg_lsn, p.delivered_lsn) AS delivered_lsn,
       s.confirmed_lsn,
       CASE WHEN NOT pg_catalog.pg_is_in_recovery() AND coalesce(r.delivered_lsn::pg_lsn, p.delivered_lsn) IS NOT NULL
            THEN greatest(pg_catalog.pg_current_wal_lsn() - greatest(r.delivered_lsn::pg_lsn, p.delivered_lsn), 0)::bigint END AS lag_bytes,
       CASE WHEN r.behind_since > 0
            THEN greatest(clock_timestamp() - to_timestamp(r.behind_since), '0')
            -- Of what is not decoded, or comes from elsewhere, nobody knows when it was committed.
            WHEN s.kind = 'postgres' AND s.state = 'streaming' AND r.state = 'running' THEN '0' END AS lag,
       s.retained_wal,
       to_timestamp(r.delivered_at) AS last_delivered_at,
       s.gap
FROM postern.stream_definitions d
JOIN postern.sources s ON s.name = d.source
LEFT JOIN postern.stream_states w ON w.stream = d.name
LEFT JOIN postern.stream_positions p ON p.stream = d.name
LEFT JOIN postern.running_streams() r ON r.name = pg_catalog.convert_to(d.name, 'UTF8');

CREATE VIEW postern.sinks AS
SELECT d.name, d.kind,
       count(s.name)::integer AS streams,
       count(s.name) FILTER (WHERE s.state = 'running')::integer AS streams_running,
       -- What the sink itself has said; what its sources have, they show.
       min(r.error) FILTER (WHERE s.state <> 'running') AS last_error,
       coalesce(sum(s.errors), 0)::bigint AS errors,
       coalesce(sum(s.events), 0)::bigint AS events,
       coalesce(sum(s.bytes), 0)::bigint AS bytes,
       coalesce(sum(s.skipped), 0)::bigint AS skipped,
       max(s.lag_bytes) AS lag_bytes,
       -- Not 0 while there is one of which it is not known.
       CASE WHEN max(s.lag) > '0' OR bool_and(s.lag IS NOT NULL) FILTER (WHERE s.state NOT IN ('stopped', 'paused'))
            THEN max(s.lag) END AS lag,
       max(s.last_delivered_at) AS last_delivered_at,
       postern.without_secrets(d.options) AS options
FROM postern.sink_definitions d
LEFT JOIN postern.streams s ON s.sink = d.name
LEFT JOIN postern.running_streams() r ON r.name = pg_catalog.convert_to(s.name, 'UTF8')
GROUP BY d.name, d.kind, d.options;

COMMENT ON TABLE postern.source_definitions IS 'Sources of change streams, as postern.create_source() has made them';
COMMENT ON TABLE postern.sink_definitions IS 'Sinks of change streams, with their secrets';
COMMENT ON TABLE postern.stream_definitions IS 'Which source feeds which sink';
COMMENT ON TABLE postern.stream_states IS 'Which streams shall run; not dumped, so that a copy of the database delivers nothing by itself';
COMMENT ON TABLE postern.stream_positions IS 'Up to where each stream has delivered; not dumped';
COMMENT ON TABLE postern.source_states IS 'What Postern has made for a source; not dumped';
COMMENT ON TABLE postern.made_publications IS 'Publications that Postern has made, and for which source: they are dropped with it; not dumped';
COMMENT ON TABLE postern.rejected_messages IS 'Messages of a broker that were no events; delete them when you have seen to them';
COMMENT ON TABLE postern.snapshot_tables IS 'Tables of a snapshot, whether their rows have been delivered, and where their changes begin; not dumped';
COMMENT ON VIEW postern.sources IS 'Each source of change streams in this database, with its worker and its slot';
COMMENT ON COLUMN postern.sources.state IS 'stopped, waiting for its worker, starting, snapshot, streaming, failed: started again soon, blocked: waits for you, standby';
COMMENT ON COLUMN postern.sources.retained_wal IS 'Bytes of WAL that the server keeps for its slot';
COMMENT ON COLUMN postern.sources.buffered IS 'Bytes of decoded changes in memory; postern.stream_buffer_size limits it';
COMMENT ON COLUMN postern.sources.gap IS 'Changes that were lost to its streams, if any ever were';
COMMENT ON VIEW postern.streams IS 'Each change stream of this database: how far it is, and what holds it up';
COMMENT ON COLUMN postern.streams.state IS 'running, retrying: its sink is in trouble, failed: its sink is made again soon, blocked: waits for you, stopped, paused, or what its source does';
COMMENT ON COLUMN postern.streams.events IS 'Events given to the sink since the server''s start';
COMMENT ON COLUMN postern.streams.skipped IS 'Events that were left out by the sink''s options';
COMMENT ON COLUMN postern.streams.delivered_lsn IS 'Everything that was committed before this has been delivered';
COMMENT ON COLUMN postern.streams.confirmed_lsn IS 'What its source''s slot has confirmed: changes before it cannot be had again';
COMMENT ON COLUMN postern.streams.lag IS 'For how long the oldest change that is not delivered has been committed, as far as it is decoded; null where nothing is known, as of a stream that does not run';
COMMENT ON COLUMN postern.streams.last_error IS 'What its sink or its source has said last';
COMMENT ON COLUMN postern.streams.gap IS 'Its source''s: changes that were lost to streams that had not delivered them';
COMMENT ON COLUMN postern.sinks.errors IS 'Errors of its streams, the sink''s each time that it failed, since the server''s start';
COMMENT ON VIEW postern.sinks IS 'Each sink of change streams in this database';
