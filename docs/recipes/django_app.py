"""uvicorn django_app:application, or any WSGI server: gunicorn django_app:wsgi

Settings, model and view in one file. The messages are delivered by `yamarket-chat outbox deliver`.
YAMARKET_OUTBOX is the database of the project: postgresql+psycopg://user:password@host/database
"""

import os

from django import setup
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.db import connection, models, transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from sqlalchemy import make_url

from yamarket_chat.outbox import Outbox, OutboxMessage

BUSINESS = int(os.environ["YAMARKET_BUSINESS_ID"])
url = make_url(os.environ["YAMARKET_OUTBOX"])
outbox = Outbox(url)
settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["127.0.0.1"],
    SECRET_KEY=os.environ["SECRET_KEY"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.database,
            "USER": url.username,
            "PASSWORD": url.password,
            "HOST": url.host,
            "PORT": url.port,
        }
    },
)
setup()


class Order(models.Model):
    state = models.CharField(max_length=20)

    class Meta:
        app_label = "shop"
        db_table = "orders"


@csrf_exempt
def packed(request: HttpRequest, order_id: int) -> JsonResponse:
    message = OutboxMessage.to_order(
        BUSINESS, order_id, f"Заказ {order_id} собран", key=f"packed-{order_id}"
    )
    # No on_commit: the message is committed with the order, or not at all.
    with transaction.atomic(), connection.cursor() as cursor:
        order = get_object_or_404(Order.objects.select_for_update(), pk=order_id)
        order.state = "packed"
        order.save()
        cursor.execute(*outbox.sql(message, connection.vendor, paramstyle="format"))
    return JsonResponse({"state": order.state})


urlpatterns = [path("orders/<int:order_id>/packed", packed)]
application = get_asgi_application()
wsgi = get_wsgi_application()
