"""Each kind of damage is found, exactly: nothing else is reported, and the finding names the damaged thing."""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio
from tests.service.audit_clouds import AuditedCloud, audited_cloud

from caelum.agent import protocol as p
from caelum.kernel.ids import new_uuid

DOCUMENT = Path(__file__).parents[2] / "docs" / "development" / "audit.md"
NO_DAMAGE = {"NotReached", "ForeignMachine", "OpenCleanUp"}
NOWHERE = new_uuid()
NOW = datetime(2026, 1, 2, 3, 4, 5)

Damage = Callable[[AuditedCloud], Awaitable[str | None]]
"""Breaks something, and tells the UUID of the resource that every finding must name."""
DAMAGES: list[tuple[frozenset[str], Damage]] = []


def found_as(*kinds: str) -> Callable[[Damage], Damage]:
    """Declare what a damage must be found as."""

    def declare(damage: Damage) -> Damage:
        DAMAGES.append((frozenset(kinds), damage))
        return damage

    return declare


# --- work -------------------------------------------------------------------------------------------------------------


@found_as("StuckInTransition")
async def a_vm_is_stopping_for_ever(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE vm_instance SET state = 'Stopping' WHERE uuid = :uuid", uuid=cloud.vm.uuid)
    return cloud.vm.uuid


@found_as("StuckInTransition", "ImageWithoutCopy")
async def an_image_is_downloading_for_ever(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE image_backup_storage_ref SET status = 'Downloading'")
    return cloud.made.image


@found_as("StuckInTransition")
async def a_volume_is_creating_for_ever(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE volume SET status = 'Creating' WHERE uuid = :uuid", uuid=cloud.volume.uuid)
    return cloud.volume.uuid


@found_as("StuckInTransition", "BridgeMissing")
async def an_l2_network_is_detaching_for_ever(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE l2_network_cluster_ref SET state = 'Detaching'")
    cloud.other.bridges.clear()
    return cloud.made.l2


async def _workflow(cloud: AuditedCloud, subject: str, owner: str) -> str:
    uuid = new_uuid()
    await cloud.sql(
        "INSERT INTO workflow_journal (uuid, name, subject, owner, attempt, state, position, skipped, ctx, answers,"
        " actor, create_date, last_op_date) VALUES (:uuid, 'vm.stop', :subject, :owner, 1, 'Running', 0, '[]', '{}',"
        " FALSE, '{}', :now, :now)",
        uuid=uuid, subject=subject, owner=owner, now=NOW,
    )  # fmt: skip
    return uuid


@found_as("UnfinishedWorkflow")
async def a_workflow_of_a_node_that_is_gone(cloud: AuditedCloud) -> str:
    return await _workflow(cloud, cloud.vm.uuid, NOWHERE)


@found_as("UnfinishedWorkflow")
async def a_workflow_of_this_node_that_it_does_not_drive(cloud: AuditedCloud) -> str:
    return await _workflow(cloud, cloud.vm.uuid, cloud.made.cloud.node.uuid)


@found_as("OrphanedJob")
async def a_job_of_a_node_that_is_gone(cloud: AuditedCloud) -> str:
    uuid = new_uuid()
    await cloud.sql(
        "INSERT INTO api_job (uuid, api, actor, node_uuid, state, percent, create_date)"
        " VALUES (:uuid, 'APICreateZoneMsg', '{}', :node, 'Processing', 0, :now)",
        uuid=uuid, node=NOWHERE, now=NOW,
    )  # fmt: skip
    return uuid


async def _clean_up(cloud: AuditedCloud, owner: str, status: str, context: str = "{}") -> str:
    uuid = new_uuid()
    await cloud.sql(
        "INSERT INTO garbage_collector (uuid, name, open_name, runner_class, context, status, management_node_uuid,"
        " type, interval_seconds, attempts, next_run, create_date, last_op_date) VALUES (:uuid, 'later', :uuid, 'none',"
        " :context, :status, :owner, 'TimeBased', 60, 3, '2199-01-01 00:00:00.000000', :now, :now)",
        uuid=uuid, owner=owner, status=status, context=context, now=NOW,
    )  # fmt: skip
    return uuid


@found_as("OrphanedCleanUp")
async def a_clean_up_of_a_node_that_is_gone(cloud: AuditedCloud) -> str:
    return await _clean_up(cloud, NOWHERE, "Processing")


# --- machines ---------------------------------------------------------------------------------------------------------


@found_as("VmNotOnHost", "TapMissing")
async def a_guest_is_gone(cloud: AuditedCloud) -> None:
    del cloud.world.vms[cloud.vm.uuid]


@found_as("VmStateDiffers")
async def a_guest_is_paused(cloud: AuditedCloud) -> str:
    cloud.world.vms[cloud.vm.uuid].state = "Paused"
    return cloud.vm.uuid


@found_as("VmStateUnknown")
async def a_state_stays_unknown(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE vm_instance SET state = 'Unknown' WHERE uuid = :uuid", uuid=cloud.vm.uuid)
    cloud.world.vms[cloud.vm.uuid].definition.nics = []
    cloud.world.leases.clear()
    cloud.world.metadata.clear()
    return cloud.vm.uuid


@found_as("StrayVm")
async def a_guest_without_a_record(cloud: AuditedCloud) -> str:
    guest = copy.deepcopy(cloud.world.vms[cloud.vm.uuid])
    guest.definition.nics, guest.definition.vm_uuid = [], NOWHERE
    cloud.other.vms[NOWHERE] = guest
    return NOWHERE


@found_as("VmOnWrongHost")
async def a_guest_on_two_hosts(cloud: AuditedCloud) -> str:
    guest = copy.deepcopy(cloud.world.vms[cloud.vm.uuid])
    guest.definition.nics = []
    cloud.other.vms[cloud.vm.uuid] = guest
    return cloud.vm.uuid


@found_as("IdleVmOnHost")
async def a_stopped_vm_runs(cloud: AuditedCloud) -> str:
    guest = copy.deepcopy(cloud.world.vms[cloud.vm.uuid])
    guest.definition.nics = []
    cloud.world.vms[cloud.idle.uuid] = guest
    return cloud.idle.uuid


@found_as("IdleVmOnHost")
async def the_definition_of_a_stopped_vm_is_left(cloud: AuditedCloud) -> str:
    await a_stopped_vm_runs(cloud)
    cloud.world.vms[cloud.idle.uuid].state = "Stopped"
    return cloud.idle.uuid


@found_as("VmWithoutHost", "VmOnWrongHost", "HostReservationWrong", "StrayLease", "StrayMetadata", "StrayTap")
async def a_running_vm_is_nowhere(cloud: AuditedCloud) -> None:
    await cloud.sql("UPDATE vm_instance SET host_uuid = NULL WHERE uuid = :uuid", uuid=cloud.vm.uuid)


@found_as("IdleVmHasHost")
async def a_stopped_vm_is_placed(cloud: AuditedCloud) -> str:
    host = cloud.vm.host_uuid
    await cloud.sql("UPDATE vm_instance SET host_uuid = :host WHERE uuid = :uuid", host=host, uuid=cloud.idle.uuid)
    return cloud.idle.uuid


# --- devices ----------------------------------------------------------------------------------------------------------


@found_as("DeviceIdMissing")
async def a_volume_without_device_id(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE volume SET device_id = NULL WHERE uuid = :uuid", uuid=cloud.volume.uuid)
    return cloud.vm.uuid


@found_as("MacDoubled", "LeaseMissing", "StrayLease")
async def two_nics_have_one_mac(cloud: AuditedCloud) -> None:
    mac = cloud.idle.vm_nics[0].mac.upper()  # the unique key does not see that it is the same
    await cloud.sql("UPDATE vm_nic SET mac = :mac WHERE uuid = :uuid", mac=mac, uuid=cloud.vm.vm_nics[0].uuid)


@found_as("RootVolumeMissing")
async def a_vm_lost_its_root_volume(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE volume SET vm_instance_uuid = NULL WHERE uuid = :uuid", uuid=cloud.idle.root_volume_uuid)
    return cloud.idle.uuid


# --- volumes ----------------------------------------------------------------------------------------------------------


@found_as("VolumeFileMissing")
async def a_volumes_file_is_gone(cloud: AuditedCloud) -> str:
    del cloud.world.files[await _path(cloud, cloud.volume.uuid)]
    return cloud.volume.uuid


@found_as("VolumeFileMissing", "StrayFile")
async def a_volumes_file_is_on_the_wrong_host(cloud: AuditedCloud) -> None:
    path = await _path(cloud, cloud.volume.uuid)
    cloud.other.files[path] = cloud.world.files.pop(path)


@found_as("VolumeWithoutBits", "StrayFile")
async def a_ready_volume_without_path(cloud: AuditedCloud) -> None:
    path = await _path(cloud, cloud.volume.uuid)
    await cloud.sql("UPDATE volume SET install_path = NULL WHERE uuid = :uuid", uuid=cloud.volume.uuid)
    await cloud.sql("UPDATE storage_reservation SET install_path = NULL WHERE key = :key", key=cloud.volume.uuid)
    assert path in cloud.world.files


@found_as("VolumePlaceUnknown")
async def nobody_knows_where_a_volume_is(cloud: AuditedCloud) -> str:
    await cloud.sql("DELETE FROM local_storage_resource_ref WHERE resource_uuid = :uuid", uuid=cloud.volume.uuid)
    return cloud.volume.uuid


@found_as("CachedImageMissing")
async def a_cached_images_file_is_gone(cloud: AuditedCloud) -> str:
    del cloud.world.files[await cloud.one("SELECT install_path FROM image_cache")]
    return cloud.made.image


@found_as("StrayFile")
async def a_file_of_nobody(cloud: AuditedCloud) -> str:
    _put(cloud, "/caelum_ps/dataVolumes/acct-x/vol-y/z.qcow2")
    return cloud.made.primary_storage


@found_as("StrayFile")
async def half_a_download_of_nobody(cloud: AuditedCloud) -> str:
    _put(cloud, await cloud.one("SELECT install_path FROM image_cache") + ".part")
    return cloud.made.primary_storage


@found_as("StrayFile", "StrayStorageReservation")
async def a_cached_image_without_record(cloud: AuditedCloud) -> str:
    await cloud.sql("DELETE FROM image_cache")
    await cloud.sql("UPDATE storage_reservation SET install_path = NULL WHERE key LIKE 'cache-%'")
    return cloud.made.primary_storage


async def _path(cloud: AuditedCloud, uuid: str) -> str:
    return str(await cloud.one("SELECT install_path FROM volume WHERE uuid = :uuid", uuid=uuid))


def _put(cloud: AuditedCloud, path: str) -> None:
    cloud.world.files[path] = p.FileInfo(path=path, virtual_size=1, actual_size=1, format="qcow2")


# --- images -----------------------------------------------------------------------------------------------------------


@found_as("ImageFileMissing", "StrayImageFile")
async def an_images_file_is_gone(cloud: AuditedCloud) -> None:
    cloud.drop_file(await cloud.one("SELECT install_path FROM image_backup_storage_ref"))  # its note stays behind


@found_as("StrayImageFile")
async def an_image_of_nobody(cloud: AuditedCloud) -> str:
    cloud.make_file(f"rootVolumeTemplates/acct-x/{NOWHERE}/{NOWHERE}.part")
    return cloud.made.backup_storage


@found_as("StrayImageFile", "StrayBackupReservation", "QuotaUsageWrong")
async def an_image_without_record(cloud: AuditedCloud) -> None:
    await cloud.sql("DELETE FROM image_backup_storage_ref")
    await cloud.sql("UPDATE image SET status = 'Deleted'")
    await cloud.sql("DELETE FROM quota_usage WHERE name = 'image.num'")
    await cloud.sql("UPDATE quota SET used = 0 WHERE name = 'image.num'")


@found_as("ImageNotCounted")
async def an_image_is_counted_smaller(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE backup_storage_reservation SET size = size - 1")
    return cloud.made.image


# --- addresses --------------------------------------------------------------------------------------------------------


@found_as("AddressWithoutHolder")
async def an_address_of_a_nic_that_is_gone(cloud: AuditedCloud) -> str:
    return await _address(cloud, NOWHERE, NOWHERE)


@found_as("AddressWithoutHolder")
async def an_address_of_a_thing_that_is_gone(cloud: AuditedCloud) -> str:
    return await _address(cloud, f"vip-{NOWHERE}", None)


async def _address(cloud: AuditedCloud, holder: str, nic: str | None) -> str:
    uuid = new_uuid()
    await cloud.sql(
        "INSERT INTO used_ip (uuid, l3_network_uuid, holder, ip_version, ip, vm_nic_uuid, create_date, last_op_date)"
        " VALUES (:uuid, :l3, :holder, 4, '10.1.0.249', :nic, :now, :now)",
        uuid=uuid, l3=cloud.made.l3, holder=holder, nic=nic, now=NOW,
    )  # fmt: skip
    return uuid


@found_as("AddressWithoutHolder")
async def a_dhcp_servers_address_without_dhcp(cloud: AuditedCloud) -> str:
    uuid = str(await cloud.one("SELECT uuid FROM used_ip WHERE used_for = 'DhcpServer'"))
    await cloud.sql("DELETE FROM network_service_l3_network_ref")
    for world in (cloud.world, cloud.other):
        for table in (world.dhcp, world.leases, world.metadata, world.nat):
            table.clear()
    return uuid


@found_as("NicAddressNotHeld")
async def a_nics_address_is_free(cloud: AuditedCloud) -> str:
    nic = cloud.idle.vm_nics[0].uuid
    await cloud.sql("DELETE FROM used_ip WHERE vm_nic_uuid = :nic", nic=nic)
    return nic


@found_as("NicAddressNotHeld", "AddressNotOnNic")
async def a_nic_has_another_address_than_it_holds(cloud: AuditedCloud) -> None:
    nic = cloud.idle.vm_nics[0].uuid
    await cloud.sql("UPDATE vm_nic SET ip = '10.1.0.248' WHERE uuid = :nic", nic=nic)


@found_as("AddressMiscounted")
async def an_address_has_the_wrong_number(cloud: AuditedCloud) -> str:
    nic = cloud.idle.vm_nics[0].uuid
    await cloud.sql("UPDATE used_ip SET ip_offset = ip_offset + 1000 WHERE vm_nic_uuid = :nic", nic=nic)
    return str(await cloud.one("SELECT uuid FROM used_ip WHERE vm_nic_uuid = :nic", nic=nic))


@found_as("DestroyedVmHasAddress")
async def a_destroyed_vm_has_an_address(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE vm_instance SET state = 'Destroyed' WHERE uuid = :uuid", uuid=cloud.idle.uuid)
    return cloud.idle.vm_nics[0].uuid


# --- networks on hosts ------------------------------------------------------------------------------------------------


@found_as("LeaseMissing")
async def a_lease_is_gone(cloud: AuditedCloud) -> str:
    cloud.world.leases[cloud.made.l3].clear()
    return cloud.vm.vm_nics[0].uuid


@found_as("MetadataMissing")
async def metadata_is_gone(cloud: AuditedCloud) -> str:
    cloud.world.metadata[cloud.made.l3].clear()
    return cloud.vm.vm_nics[0].uuid


@found_as("TranslationMissing")
async def translation_is_gone(cloud: AuditedCloud) -> str:
    cloud.world.nat.clear()
    return cloud.vm.vm_nics[0].uuid


@found_as("BridgeMissing")
async def a_bridge_is_gone(cloud: AuditedCloud) -> str:
    cloud.other.bridges.clear()
    return cloud.made.l2


@found_as("TapMissing")
async def a_guest_runs_without_its_nic(cloud: AuditedCloud) -> str:
    cloud.world.vms[cloud.vm.uuid].definition.nics = []
    return cloud.vm.vm_nics[0].uuid


@found_as("StrayLease", "StrayMetadata")
async def a_stopped_vm_is_still_served(cloud: AuditedCloud) -> str | None:
    nic, l3 = cloud.idle.vm_nics[0], cloud.made.l3
    cloud.world.leases[l3][nic.mac] = p.DhcpEntry(mac=nic.mac, ip=nic.ip or "", hostname="idle")
    cloud.world.metadata[l3][nic.ip or ""] = p.MetadataEntry(ip=nic.ip or "", vm_uuid=cloud.idle.uuid, hostname="idle")
    return cloud.vm.host_uuid


@found_as("StrayDhcp", "StrayTranslation")
async def a_network_that_is_gone_is_still_served(cloud: AuditedCloud) -> str | None:
    world, l3 = cloud.world, cloud.made.l3
    world.dhcp[NOWHERE], world.leases[NOWHERE], world.nat[NOWHERE] = world.dhcp[l3], {}, world.nat[l3]
    return cloud.vm.host_uuid


@found_as("StrayBridge")
async def a_bridge_that_nobody_needs(cloud: AuditedCloud) -> str | None:
    cloud.world.bridges["br_old"] = p.CreateBridge(l2_uuid=NOWHERE, bridge="br_old", interface=None)
    return cloud.vm.host_uuid


@found_as("StrayTap")
async def a_nic_that_nobody_needs(cloud: AuditedCloud) -> str | None:
    nic = copy.deepcopy(cloud.world.vms[cloud.vm.uuid].definition.nics[0])
    nic.name = "vnic99.0"
    cloud.world.vms[cloud.vm.uuid].definition.nics.append(nic)
    return cloud.vm.host_uuid


# --- capacities -------------------------------------------------------------------------------------------------------


@found_as("HostCapacityWrong")
async def a_host_counts_wrongly(cloud: AuditedCloud) -> str | None:
    await cloud.sql("UPDATE host_capacity SET used_memory = used_memory + 4096 WHERE uuid = :uuid", uuid=_host(cloud))
    return cloud.vm.host_uuid


@found_as("HostCapacityMissing")
async def a_hosts_capacity_is_unknown(cloud: AuditedCloud) -> str:
    other = next(one.uuid for one in cloud.made.hosts.hosts if one.uuid != cloud.vm.host_uuid)
    await cloud.sql("DELETE FROM host_capacity WHERE uuid = :uuid", uuid=other)
    return other


@found_as("StrayHostReservation")
async def a_stopped_vm_has_a_reservation(cloud: AuditedCloud) -> str:
    await cloud.sql(
        "INSERT INTO host_reservation (vm_uuid, host_uuid, cpu_num, memory, create_date)"
        " VALUES (:vm, :host, 1, 1024, :now)",
        vm=cloud.idle.uuid, host=_host(cloud), now=NOW,
    )  # fmt: skip
    await cloud.sql(
        "UPDATE host_capacity SET used_cpu = used_cpu + 1, used_memory = used_memory + 1024, vm_count = vm_count + 1"
        " WHERE uuid = :uuid",
        uuid=_host(cloud),
    )
    return cloud.idle.uuid


@found_as("HostReservationWrong", "HostCapacityWrong")
async def a_running_vm_has_no_reservation(cloud: AuditedCloud) -> None:
    await cloud.sql("DELETE FROM host_reservation")


def _host(cloud: AuditedCloud) -> str:
    assert cloud.vm.host_uuid is not None
    return cloud.vm.host_uuid


@found_as("StorageCapacityWrong")
async def a_storage_counts_wrongly(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE primary_storage_capacity SET available_capacity = available_capacity - 1")
    return cloud.made.primary_storage


@found_as("StorageCapacityWrong")
async def a_hosts_share_is_counted_wrongly(cloud: AuditedCloud) -> None:
    await cloud.sql(
        "UPDATE local_storage_host_ref SET available_capacity = available_capacity - 1 WHERE host_uuid = :host",
        host=_host(cloud),
    )


@found_as("StrayStorageReservation")
async def space_is_kept_for_nothing(cloud: AuditedCloud) -> str:
    await _reserve(cloud, NOWHERE)
    return cloud.made.primary_storage


@found_as("StrayStorageReservation")
async def space_is_kept_for_bits_that_nobody_deletes(cloud: AuditedCloud) -> str:
    await _reserve(cloud, f"trash-{NOWHERE}")
    return cloud.made.primary_storage


async def _reserve(cloud: AuditedCloud, key: str) -> None:
    await cloud.sql(
        "INSERT INTO storage_reservation (key, primary_storage_uuid, host_uuid, size, charged, scaled, create_date)"
        " VALUES (:key, :storage, :host, 0, 0, TRUE, :now)",
        key=key, storage=cloud.made.primary_storage, host=_host(cloud), now=NOW,
    )  # fmt: skip


@found_as("StorageReservationWrong")
async def too_little_space_is_kept_for_a_volume(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE storage_reservation SET size = size - 1 WHERE key = :key", key=cloud.volume.uuid)
    return cloud.made.primary_storage


@found_as("VolumeNotCounted", "StorageCapacityWrong")
async def no_space_is_kept_for_a_volume(cloud: AuditedCloud) -> None:
    await cloud.sql("DELETE FROM storage_reservation WHERE key = :key", key=cloud.volume.uuid)


@found_as("CachedImageNotCounted", "StorageCapacityWrong")
async def no_space_is_kept_for_a_cached_image(cloud: AuditedCloud) -> None:
    await cloud.sql("DELETE FROM storage_reservation WHERE key LIKE 'cache-%'")


# --- quotas, ownership, tags, references ------------------------------------------------------------------------------


@found_as("QuotaWrong")
async def an_account_is_counted_for_too_much(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE quota SET used = used + 1 WHERE name = 'vm.num'")
    return str(await cloud.one("SELECT identity_uuid FROM quota WHERE name = 'vm.num'"))


@found_as("StrayQuotaUsage", "QuotaWrong")
async def something_gone_is_counted(cloud: AuditedCloud) -> None:
    await cloud.sql(
        "INSERT INTO quota_usage (name, key, account_uuid, amount) SELECT name, :key, account_uuid, 1 FROM quota_usage"
        " WHERE name = 'image.num'",
        key=NOWHERE,
    )


@found_as("QuotaUsageWrong", "QuotaWrong")
async def a_running_vm_is_not_counted(cloud: AuditedCloud) -> None:
    await cloud.sql("DELETE FROM quota_usage WHERE name = 'vm.cpuNum'")


@found_as("QuotaOfWrongAccount", "QuotaWrong")
async def a_vm_is_counted_for_somebody_else(cloud: AuditedCloud) -> None:
    await cloud.sql("UPDATE quota_usage SET account_uuid = :nobody WHERE name = 'vm.num' AND key = :vm", nobody=NOWHERE,
                    vm=cloud.vm.uuid)  # fmt: skip


@found_as("OwnerOfNothing")
async def something_gone_is_owned(cloud: AuditedCloud) -> str:
    await _copy_owner(cloud, NOWHERE)
    return NOWHERE


@found_as("NotOwned")
async def a_vm_has_no_owner(cloud: AuditedCloud) -> str:
    await cloud.sql("DELETE FROM account_resource_ref WHERE resource_uuid = :uuid", uuid=cloud.idle.uuid)
    return cloud.idle.uuid


@found_as("OwnerMissing", "QuotaOfWrongAccount")
async def a_vm_belongs_to_an_account_that_is_gone(cloud: AuditedCloud) -> str:
    await cloud.sql(
        "UPDATE account_resource_ref SET account_uuid = :nobody WHERE resource_uuid = :uuid",
        nobody=NOWHERE, uuid=cloud.idle.uuid,
    )  # fmt: skip
    return cloud.idle.uuid


@found_as("ShareOfNothing")
async def something_gone_is_shared(cloud: AuditedCloud) -> str:
    await cloud.sql(
        "INSERT INTO shared_resource (owner_account_uuid, resource_type, resource_uuid, permission, to_public,"
        " create_date, last_op_date) VALUES (:nobody, 'ImageVO', :nobody, 1, TRUE, :now, :now)",
        nobody=NOWHERE, now=NOW,
    )  # fmt: skip
    return NOWHERE


async def _copy_owner(cloud: AuditedCloud, resource: str) -> None:
    columns = "account_uuid, owner_account_uuid, resource_type, concrete_resource_type, permission, is_shared"
    await cloud.sql(
        f"INSERT INTO account_resource_ref (resource_uuid, {columns}, create_date, last_op_date)"
        f" SELECT :resource, {columns}, :now, :now FROM account_resource_ref WHERE resource_uuid = :vm",
        resource=resource, vm=cloud.vm.uuid, now=NOW,
    )  # fmt: skip


@found_as("TagOnNothing")
async def a_system_tag_hangs_on_nothing(cloud: AuditedCloud) -> str:
    return await _tag(cloud, "system_tag", "inherent, type", "FALSE, 'System'")


@found_as("TagOnNothing")
async def a_user_tag_hangs_on_nothing(cloud: AuditedCloud) -> str:
    return await _tag(cloud, "user_tag", "type", "'User'")


async def _tag(cloud: AuditedCloud, table: str, more: str, values: str) -> str:
    uuid = new_uuid()
    await cloud.sql(
        f"INSERT INTO {table} (uuid, resource_uuid, resource_type, tag, {more}, create_date, last_op_date)"
        f" VALUES (:uuid, :nothing, 'VmInstanceVO', 'hostname::web1', {values}, :now, :now)",
        uuid=uuid, nothing=NOWHERE, now=NOW,
    )  # fmt: skip
    return uuid


@found_as("SettingOnNothing")
async def a_setting_is_given_for_nothing(cloud: AuditedCloud) -> str:
    uuid = new_uuid()
    await cloud.sql(
        "INSERT INTO resource_config (uuid, name, category, value, resource_uuid, resource_type, create_date,"
        " last_op_date) VALUES (:uuid, 'deletionPolicy', 'vm', 'Direct', :nothing, 'VmInstanceVO', :now, :now)",
        uuid=uuid, nothing=NOWHERE, now=NOW,
    )  # fmt: skip
    return uuid


@found_as("DanglingReference")
async def a_vm_is_in_a_cluster_that_is_gone(cloud: AuditedCloud) -> str:
    await cloud.sql("UPDATE vm_instance SET cluster_uuid = :gone WHERE uuid = :uuid", gone=NOWHERE, uuid=cloud.vm.uuid)
    return NOWHERE


@found_as("DanglingReference")
async def a_number_of_a_vm_that_is_gone(cloud: AuditedCloud) -> str:
    await cloud.sql("INSERT INTO vm_sequence (vm_instance_uuid) VALUES (:gone)", gone=NOWHERE)
    return NOWHERE


@found_as("DeviceIdDoubled")
async def two_volumes_are_one_device(cloud: AuditedCloud) -> str:
    """The last one: it takes a table's unique keys away for good."""
    async with cloud.made.cloud.node.db.transaction() as tx:
        connection = await tx.connection()
        await connection.exec_driver_sql("CREATE TABLE other AS SELECT * FROM volume")
        await connection.exec_driver_sql("DROP TABLE volume")
        await connection.exec_driver_sql("ALTER TABLE other RENAME TO volume")
    await cloud.sql("UPDATE volume SET device_id = 0 WHERE uuid = :uuid", uuid=cloud.volume.uuid)
    return cloud.vm.uuid


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def module_cloud() -> AsyncIterator[AuditedCloud]:
    async with audited_cloud() as cloud:
        yield cloud


@pytest_asyncio.fixture(loop_scope="module")
async def cloud(module_cloud: AuditedCloud) -> AsyncIterator[AuditedCloud]:
    yield module_cloud
    await module_cloud.restore()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("kinds", "damage"), DAMAGES, ids=[damage.__name__ for _, damage in DAMAGES])
async def test_it_is_found_exactly(cloud: AuditedCloud, kinds: frozenset[str], damage: Damage) -> None:
    named = await damage(cloud)
    wrong = await cloud.wrong()
    assert {one.kind for one in wrong} == kinds, wrong
    if named is not None:
        assert {one.resource_uuid for one in wrong} == {named}
    for one in wrong:
        assert one.resource_uuid in one.details or any(one.resource_uuid in str(value) for value in one.facts.values())


def test_every_kind_is_injected_and_described() -> None:
    """The documentation's table names the kinds; those that are no damage are tested elsewhere."""
    documented = set(re.findall(r"`([A-Z]\w+)`", DOCUMENT.read_text().partition("## What is found")[2]))
    injected = {kind for kinds, _ in DAMAGES for kind in kinds}
    assert injected | NO_DAMAGE == documented


@pytest.mark.asyncio(loop_scope="module")
async def test_work_that_goes_on_excuses_what_it_is_about(cloud: AuditedCloud) -> None:
    path = "/caelum_ps/dataVolumes/acct-x/vol-y/z.qcow2"
    _put(cloud, path)
    assert len(await cloud.wrong()) == 1
    await _clean_up(cloud, cloud.made.cloud.node.uuid, "Idle", f'{{"install_path": "{path}"}}')
    reply = await cloud.audit()
    assert reply.clean
    assert [one.kind for one in reply.findings] == ["OpenCleanUp"]
