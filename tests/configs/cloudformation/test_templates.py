"""The templates: the linter's verdict, what they must not allow, that each stands alone and is up to date."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.planner.hardware import INSTANCES
from server.doctor.releases import RECOMMENDED

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "configs/cloudformation"
GIVEN = {"AllowedCidr": "203.0.113.7/32", "SourceUrl": "https://example.org/neuronx-serve.git"}
COMPILING = GIVEN
CFN_LINT = Path(sys.executable).with_name("cfn-lint")
READY_MADE = {
    **GIVEN,
    "ArtifactsS3Prefix": "s3://mine/some/where",
    "SourceUrl": "s3://sources/neuronx-serve.tar.gz",
    "KeyPairName": "my key",
    "HuggingFaceTokenSecret": "arn:aws:secretsmanager:us-west-2:123456789012:secret:hub-AbCdEf",
}
LARGEST_USER_DATA = 16384
LARGEST_BODY = 51200  # of a template that is given to CloudFormation itself, without a bucket


def statements(resource: Any) -> Iterator[dict[str, Any]]:
    properties = resource.get("Properties", {})
    documents = [policy["PolicyDocument"] for policy in properties.get("Policies", ())]
    documents += [properties["PolicyDocument"]] if "PolicyDocument" in properties else []
    for document in documents:
        yield from document["Statement"]


def of_type(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    found = {name: resource for name, resource in resources.items() if resource["Type"] == kind}
    assert found, kind
    return found


# --- as files ---------------------------------------------------------------------------------------------------


def test_the_linter_finds_nothing() -> None:
    command = [CFN_LINT, "--regions", "us-east-1", "us-west-2", "--"]
    done = subprocess.run([*command, *FOLDER.glob("*.yaml")], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_linter_notices_what_is_wrong(tmp_path: Path, template: Any) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        (FOLDER / f"{template.name}.yaml").read_text().replace("HttpTokens: required", "HttpTokens: always")
    )

    done = subprocess.run([CFN_LINT, path], capture_output=True, text=True, check=False)

    assert "'always' is not one of" in done.stdout


def test_both_are_made_of_their_source(template: Any) -> None:
    specification = importlib.util.spec_from_file_location("make_templates", ROOT / "scripts/make_templates.py")
    assert specification
    assert specification.loader
    make_templates = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make_templates)

    assert (FOLDER / f"{template.name}.yaml").read_text("utf-8") == make_templates.render(template.name)


def test_each_can_be_launched_as_one_file(template: Any) -> None:
    assert (FOLDER / f"{template.name}.yaml").stat().st_size < LARGEST_BODY
    assert "AWS::CloudFormation::Stack" not in {each["Type"] for each in template.document["Resources"].values()}


def test_the_one_asks_for_a_vpc_and_the_other_makes_it(existing_vpc: Any, template: Any) -> None:
    names = {"VpcId", "PublicSubnetId"}
    if template.name == "existing-vpc":
        assert names <= template.document["Parameters"].keys()
        assert not [each for each in template.document["Resources"].values() if each["Type"] == "AWS::EC2::VPC"]
    else:
        assert not names & template.document["Parameters"].keys()
        common = template.document["Resources"].keys() & existing_vpc.document["Resources"].keys()
        assert common == existing_vpc.document["Resources"].keys()
        instances = of_type(template.with_parameters(**COMPILING).resources, "AWS::EC2::Instance")
        assert all({"DefaultRoute", "RouteOfSubnet"} <= set(each["DependsOn"]) for each in instances.values())


# --- parameters -------------------------------------------------------------------------------------------------


def test_every_parameter_is_used_and_explained(template: Any) -> None:
    text = json.dumps([template.document[part] for part in ("Conditions", "Resources", "Outputs")])
    groups = template.document["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    for name, parameter in template.document["Parameters"].items():
        assert f'"Ref": "{name}"' in text or f"${{{name}}}" in text, name
        assert parameter["Description"]
        assert sum(name in group["Parameters"] for group in groups) == 1, name


def test_what_opens_the_service_or_spends_money_has_no_default(template: Any) -> None:
    parameters = template.document["Parameters"]
    assert "Default" not in parameters["AllowedCidr"]
    assert "Default" not in parameters["SourceUrl"]
    assert parameters["InstanceType"]["AllowedValues"] == ["inf2.xlarge", "inf2.8xlarge"]
    assert {"inf2.xlarge"} <= {each.name for each in INSTANCES}
    assert parameters["VolumeSize"]["MinValue"] == 80
    assert parameters["VolumeThroughput"]["MinValue"] > 125


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("AllowedCidr", ["203.0.113.7/32", "10.0.0.0/8"], ["", "203.0.113.7", "::/0", "0.0.0.0/33"]),
        ("Models", ["a/b", "a/b,c/d", "a/b, c-1.0/d_e"], ["", "b", "a/b,", "a/b c/d", "a/b'; reboot"]),
        ("HuggingFaceTokenSecret", ["", READY_MADE["HuggingFaceTokenSecret"]], ["hf_abc", "my-secret"]),
        ("ArtifactsS3Prefix", ["", "s3://mine/some/where"], ["s3://mine", "s3://mine/", "s3://mine/x/", "mine/x"]),
        ("SourceUrl", ["https://e/x.git", "s3://b/k.tar.gz", "https://e/x.tgz?a=b&c=%2F"], ["git@x:y", "-x", "https://x/'"]),
        ("SourceRevision", ["", "main", "v1.0", "feature/x", "0" * 64], ["-x", "a b", "a'b"]),
        ("ImageId", ["", "ami-0e1bed4f06a3b463d"], ["ubuntu"]),
        ("KeyPairName", ["", "my key"], ["it's"]),
    ],
)  # fmt: skip
def test_a_parameter_takes_what_it_should_and_nothing_that_ends_a_quote(
    template: Any, name: str, good: list[str], bad: list[str]
) -> None:
    pattern = template.document["Parameters"][name]["AllowedPattern"]
    assert [text for text in good if not re.fullmatch(pattern, text)] == []
    assert [text for text in bad if re.fullmatch(pattern, text)] == []


# --- who may do what --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [COMPILING, READY_MADE], ids=["compiling", "ready-made"])
def test_no_role_may_do_more_than_is_named(template: Any, given: dict[str, str]) -> None:
    resources = template.with_parameters(**given).resources
    for name, resource in resources.items():
        for statement in statements(resource):
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert all(re.fullmatch(r"[a-z0-9]+:[A-Za-z]+", action) for action in actions), name
            assert "NotAction" not in statement
            if "*" in statement["Resource"].replace("/*", ""):
                # Session Manager's, which cannot be bound to a resource.
                assert all(action.startswith(("ssmmessages:", "ssm:UpdateInstance")) for action in actions), name
    for role in of_type(resources, "AWS::IAM::Role").values():
        assert role["Properties"]["ManagedPolicyArns"] == ["<InstancePolicy>"]
        (trusted,) = role["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        assert trusted["Principal"] == {"Service": "ec2.amazonaws.com"}


def allowed(resource: Any) -> dict[str, Any]:
    """Resource by action, of the actions that have one."""
    return {str(each["Action"]): each["Resource"] for each in statements(resource) if each["Resource"] != "*"}


def test_what_is_read_and_written_is_this_stacks_own(template: Any) -> None:
    resources = template.with_parameters(**COMPILING).resources
    artifacts = "<ArtifactsBucket.Arn>/artifacts/*"
    assert allowed(resources["ServerRole"]) == {"s3:GetObject": artifacts, "s3:ListBucket": "<ArtifactsBucket.Arn>"}
    assert allowed(resources["BuilderRole"]) == {
        "['s3:GetObject', 's3:PutObject']": artifacts,
        "s3:ListBucket": "<ArtifactsBucket.Arn>",
    }
    assert allowed(resources["InstancePolicy"]) == {}


def test_what_is_read_of_others_is_what_was_named(template: Any) -> None:
    resources = template.with_parameters(**READY_MADE).resources
    assert allowed(resources["ServerRole"]) == {
        "s3:GetObject": "arn:aws:s3:::mine/some/where/*",
        "s3:ListBucket": "arn:aws:s3:::mine",
    }
    assert allowed(resources["InstancePolicy"]) == {
        "s3:GetObject": "arn:aws:s3:::sources/neuronx-serve.tar.gz",
        "secretsmanager:GetSecretValue": READY_MADE["HuggingFaceTokenSecret"],
    }
    assert not [name for name in resources if name.startswith(("Builder", "Artifacts"))]


@pytest.mark.parametrize("given", [COMPILING, READY_MADE], ids=["compiling", "ready-made"])
def test_nothing_is_open_to_the_world(template: Any, given: dict[str, str]) -> None:
    groups = of_type(template.with_parameters(**given).resources, "AWS::EC2::SecurityGroup")
    opened = [rule for group in groups.values() for rule in group["Properties"].get("SecurityGroupIngress", ())]
    assert {rule["CidrIp"] for rule in opened} == {given["AllowedCidr"]}
    ports = {rule["FromPort"] for rule in opened}
    assert ports == ({22, 3000, 8080} if given.get("KeyPairName") else {3000, 8080})
    assert all(rule["FromPort"] == rule["ToPort"] and rule["IpProtocol"] == "tcp" for rule in opened)


def test_the_bucket_is_private_and_outlives_the_stack(template: Any) -> None:
    (bucket,) = of_type(template.with_parameters(**COMPILING).resources, "AWS::S3::Bucket").values()
    assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"
    assert all(bucket["Properties"]["PublicAccessBlockConfiguration"].values())
    assert bucket["Properties"]["BucketEncryption"]


# --- the instances ----------------------------------------------------------------------------------------------


def test_instances_ask_for_tokens_and_have_encrypted_volumes_fast_enough(template: Any) -> None:
    templates = of_type(template.with_parameters(**COMPILING).resources, "AWS::EC2::LaunchTemplate")
    assert set(templates) == {"ServerTemplate", "BuilderTemplate"}
    for launch in templates.values():
        data = launch["Properties"]["LaunchTemplateData"]
        assert data["MetadataOptions"]["HttpTokens"] == "required"
        assert data["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        (volume,) = [each["Ebs"] for each in data["BlockDeviceMappings"]]
        assert volume["Encrypted"] is True
        assert volume["VolumeType"] == "gp3"
        assert (volume["VolumeSize"], volume["Throughput"]) == (120, 500)
        highest = template.document["Parameters"]["VolumeThroughput"]["MaxValue"]
        assert highest * 4 <= volume["Iops"]  # gp3: at most 0.25 MB/s for each
        assert "InstanceMarketOptions" not in data


def test_image_and_sdk_are_pinned(template: Any) -> None:
    images = template.document["Mappings"]["Images"]
    assert images.keys() == {"us-east-1", "us-west-2"}
    assert all(re.fullmatch(r"ami-[0-9a-f]{17}", image["Ubuntu2204"]) for image in images.values())
    data = template.with_parameters(**GIVEN).resources["ServerTemplate"]["Properties"]["LaunchTemplateData"]
    assert data["ImageId"] == images["us-west-2"]["Ubuntu2204"]
    given = template.with_parameters(**GIVEN, ImageId="ami-12345678").resources["ServerTemplate"]
    assert given["Properties"]["LaunchTemplateData"]["ImageId"] == "ami-12345678"
    assert f"sdk={RECOMMENDED.name}\n" in (ROOT / "scripts/install-inf2").read_text()


@pytest.mark.parametrize("role", ["Server", "Builder"])
def test_user_data_fits_and_is_a_script(template: Any, role: str) -> None:
    text = template.with_parameters(**COMPILING).user_data(role)
    assert text.startswith("#!/bin/bash\n")
    assert len(text.encode()) < LARGEST_USER_DATA - 2048  # room for a signed URL and long values
    checked = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "-"], input=text, capture_output=True, text=True, check=False
    )
    assert checked.stdout == ""


def test_the_builder_has_128_gb_and_ends_itself(template: Any) -> None:
    resources = template.with_parameters(**COMPILING).resources
    assert resources["Builder"]["Properties"]["InstanceType"] == "r6i.4xlarge"
    data = resources["BuilderTemplate"]["Properties"]["LaunchTemplateData"]
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    minutes = re.search(r"shutdown -h \+(\d+)", template.with_parameters(**COMPILING).user_data("Builder"))
    assert minutes
    assert 60 * int(minutes[1]) < int(resources["ArtifactsCompiled"]["Properties"]["Timeout"])


def test_each_script_gives_up_before_the_stack_does(template: Any) -> None:
    resources = template.with_parameters(**COMPILING).resources
    for script, condition in (("server", "ModelAvailable"), ("builder", "ArtifactsCompiled")):
        limit = re.search(r"TIME_LIMIT:-(\d+)", (FOLDER / f"{script}.sh").read_text())
        timeout = int(resources[condition]["Properties"]["Timeout"])
        assert limit
        assert (
            timeout - 1200 <= int(limit[1]) <= timeout - 600
        )  # time to fetch the source before, and to tell afterwards
        assert timeout == 3 * 3600


def test_outputs_tell_where_everything_is(template: Any) -> None:
    outputs = template.with_parameters(**GIVEN).evaluate(template.document["Outputs"])
    values = {name: output["Value"] for name, output in outputs.items()}
    assert values["ChatUi"] == "http://<ServerAddress>:3000"
    assert values["Api"] == "http://<ServerAddress>:8080"
    assert values["Admin"] == (
        "aws ssm start-session --region us-west-2 --target <Server> --document-name AWS-StartPortForwardingSession "
        "--parameters portNumber=8080,localPortNumber=8080"
    )
    assert values["Artifacts"] == "s3://<ArtifactsBucket>/artifacts"
