"""Section 7 of the code guide, unchanged but for the import lines."""

from PIL import Image

from stylegen.signature import add_watermark
from stylegen.webhook import send_complete_webhook


def test_add_watermark():
    """워터마크 삽입 테스트."""
    image = Image.new("RGB", (512, 512), color="white")

    watermarked = add_watermark(image, artist_name="TestArtist", opacity=128)

    assert watermarked.size == (512, 512)
    assert watermarked.mode == "RGB"
    # 워터마크가 추가되어 이미지가 변경되었는지 확인
    assert watermarked != image


def test_webhook_complete(mocker):
    """완료 Webhook 전송 테스트."""
    mock_post = mocker.patch("requests.post")

    send_complete_webhook(
        url="http://localhost:8000/api/webhooks/inference/complete",
        generation_id=500,
        result_url="https://s3.../gen_500.jpg",
        seed=42,
    )

    assert mock_post.called
    assert mock_post.call_args[1]["json"]["generation_id"] == 500
    assert mock_post.call_args[1]["json"]["metadata"]["seed"] == 42
