"""kombu's SQLAlchemy transport, polled more often than once a second, and at ease with a database that went away."""

from django.conf import settings
from kombu.transport import sqlalchemy
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError


class Channel(sqlalchemy.Channel):
    def _engine_from_config(self) -> Engine:
        # Looked at before use: the database may have been restarted since the last message.
        return create_engine(self.connection.client.hostname, pool_pre_ping=True)

    def ping(self) -> None:
        self.session.execute(text("SELECT 1"))
        self.session.commit()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        super().close()


class Transport(sqlalchemy.Transport):
    Channel = Channel
    # A worker that meets one of these connects anew. kombu lists OperationalError alone: when the database goes away in the
    # middle of a transaction, its own commit in `finally` raises PendingRollbackError instead, and the worker would end.
    connection_errors = (DBAPIError, PendingRollbackError)

    def __init__(self, client: object, **options: object) -> None:
        super().__init__(client, **options)
        self.polling_interval = settings.LIONWEB_POLL_S

    def establish_connection(self) -> "Transport":
        """Connects in fact: kombu's opens nothing until the first message, so that a worker whose database is away would
        believe itself connected, fail and start over hundreds of times a second instead of waiting between tries."""
        super().establish_connection()
        try:
            self._avail_channels[-1].ping()
        except self.connection_errors:
            self.close_connection(self)
            raise
        return self
