-- The tables as version 1 made them.
CREATE TABLE taskworker_attempt (
	job_id BIGINT NOT NULL, 
	claim BIGINT NOT NULL, 
	attempt INTEGER NOT NULL, 
	worker_id TEXT, 
	started_at BIGINT, 
	finished_at BIGINT NOT NULL, 
	outcome TEXT NOT NULL, 
	error TEXT, 
	PRIMARY KEY (job_id, claim)
);
CREATE TABLE taskworker_blob (
	sha256 TEXT NOT NULL, 
	uses BIGINT NOT NULL, 
	bytes BLOB NOT NULL, 
	PRIMARY KEY (sha256)
);
CREATE TABLE taskworker_job (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	uid TEXT NOT NULL, 
	task TEXT NOT NULL, 
	queue TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	priority INTEGER DEFAULT 0 NOT NULL, 
	state TEXT NOT NULL, 
	run_at BIGINT DEFAULT 0 NOT NULL, 
	args TEXT NOT NULL, 
	max_attempts INTEGER DEFAULT 1 NOT NULL, 
	claim BIGINT DEFAULT 0 NOT NULL, 
	worker_id TEXT, 
	at_most_once INTEGER DEFAULT 0 NOT NULL, 
	solo INTEGER DEFAULT 0 NOT NULL, 
	failures INTEGER DEFAULT 0 NOT NULL, 
	crashes INTEGER DEFAULT 0 NOT NULL, 
	solo_crashes INTEGER DEFAULT 0 NOT NULL, 
	timeout BIGINT, 
	schedule TEXT, 
	fire_at BIGINT, 
	unique_key TEXT, 
	cancel_requested INTEGER DEFAULT 0 NOT NULL, 
	progress TEXT, 
	result TEXT, 
	error TEXT, 
	failure_kind TEXT, 
	created_at BIGINT NOT NULL, 
	started_at BIGINT, 
	finished_at BIGINT, 
	expires_at BIGINT, 
	CONSTRAINT taskworker_job_owner CHECK ((state = 'running') = (worker_id IS NOT NULL)), 
	CONSTRAINT taskworker_job_end CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)), 
	CONSTRAINT taskworker_job_kind CHECK (kind IN ('sync', 'async')), 
	CONSTRAINT taskworker_job_state CHECK (state IN ('scheduled', 'ready', 'running') OR state IN ('succeeded', 'failed', 'cancelled')), 
	UNIQUE (uid)
);
CREATE INDEX taskworker_job_due ON taskworker_job (run_at) WHERE state = 'scheduled';
CREATE UNIQUE INDEX taskworker_job_fire ON taskworker_job (schedule, fire_at) WHERE schedule IS NOT NULL;
CREATE INDEX taskworker_job_gone ON taskworker_job (expires_at) WHERE state IN ('succeeded', 'failed', 'cancelled');
CREATE INDEX taskworker_job_held ON taskworker_job (worker_id) WHERE state = 'running';
CREATE INDEX taskworker_job_overlap ON taskworker_job (schedule) WHERE schedule IS NOT NULL AND state IN ('scheduled', 'ready', 'running');
CREATE INDEX taskworker_job_ready ON taskworker_job (queue, kind, priority DESC, id) WHERE state = 'ready' AND solo = 0;
CREATE INDEX taskworker_job_suspect ON taskworker_job (id) WHERE state = 'ready' AND solo = 1;
CREATE UNIQUE INDEX taskworker_job_unique ON taskworker_job (unique_key) WHERE unique_key IS NOT NULL AND state IN ('scheduled', 'ready', 'running');
CREATE TABLE taskworker_mail (
	id TEXT NOT NULL, 
	message_id TEXT NOT NULL, 
	sender TEXT NOT NULL, 
	options TEXT NOT NULL, 
	once INTEGER DEFAULT 0 NOT NULL, 
	phase TEXT, 
	tries INTEGER DEFAULT 0 NOT NULL, 
	size INTEGER NOT NULL, 
	layout TEXT, 
	created_at BIGINT NOT NULL, 
	give_up_at BIGINT NOT NULL, 
	finished_at BIGINT, 
	expires_at BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE INDEX taskworker_mail_gone ON taskworker_mail (expires_at);
CREATE TABLE taskworker_mail_body (
	mail_id TEXT NOT NULL, 
	body BLOB NOT NULL, 
	PRIMARY KEY (mail_id)
);
CREATE TABLE taskworker_meta (
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE taskworker_queue (
	name TEXT NOT NULL, 
	paused INTEGER DEFAULT 0 NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE taskworker_recipient (
	mail_id TEXT NOT NULL, 
	address TEXT NOT NULL, 
	position INTEGER NOT NULL, 
	ending TEXT NOT NULL, 
	code INTEGER, 
	text TEXT, 
	next_try BIGINT, 
	PRIMARY KEY (mail_id, address), 
	CONSTRAINT taskworker_recipient_ending CHECK (ending IN ('waiting', 'accepted', 'deferred', 'rejected', 'unknown'))
);
CREATE TABLE taskworker_schedule (
	name TEXT NOT NULL, 
	task TEXT NOT NULL, 
	"trigger" TEXT NOT NULL, 
	args TEXT NOT NULL, 
	next_at BIGINT, 
	last_at BIGINT, 
	paused INTEGER DEFAULT 0 NOT NULL, 
	source TEXT NOT NULL, 
	seen_at BIGINT NOT NULL, 
	PRIMARY KEY (name), 
	CONSTRAINT taskworker_schedule_source CHECK (source IN ('code', 'runtime'))
);
CREATE INDEX taskworker_schedule_next ON taskworker_schedule (next_at) WHERE paused = 0 AND next_at IS NOT NULL;
CREATE TABLE taskworker_worker (
	id TEXT NOT NULL, 
	host TEXT NOT NULL, 
	pid BIGINT NOT NULL, 
	started_at BIGINT NOT NULL, 
	server_started_at BIGINT, 
	beat BIGINT DEFAULT 0 NOT NULL, 
	beat_at BIGINT NOT NULL, 
	state TEXT NOT NULL, 
	info TEXT NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT taskworker_worker_state CHECK (state IN ('alive', 'draining', 'dead', 'left'))
);
